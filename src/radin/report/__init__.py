"""Reads what came out and shows it. Works on JSON forms, so that it can show a run of any session."""

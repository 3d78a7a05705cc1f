"""The doctor: what is the matter with a pool."""

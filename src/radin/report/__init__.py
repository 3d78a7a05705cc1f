"""Puts what came out into words, tables and pages. Works on typed values; result.json can be read back into one."""

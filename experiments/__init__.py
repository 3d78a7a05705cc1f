"""The experiments of RADIN's paper on data as they are distributed: README.md, ``python -m experiments``."""

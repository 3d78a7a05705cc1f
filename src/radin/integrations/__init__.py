"""What other programs need to work with radin; each module imports its own library alone."""

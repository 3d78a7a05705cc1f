"""What other libraries need to work with radin; each module imports its library when it is imported itself."""

"""How sure the numbers of a run are."""

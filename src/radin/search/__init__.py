"""Arrays in, recipes out: works on members' outputs alone, knows no models, files or weights."""

from radin.search.search import Estimator, Search

__all__ = ["Estimator", "Search"]

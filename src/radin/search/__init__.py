"""Arrays in, recipes out: works on members' outputs alone, knows no models, files or weights."""

from radin.estimate import Estimator
from radin.search.ranking import RankedRecipe, rank
from radin.search.search import Search

__all__ = ["Estimator", "RankedRecipe", "Search", "rank"]

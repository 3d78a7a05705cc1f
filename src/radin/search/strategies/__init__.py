"""How the budget is spent: strategies as generators that yield mixing weights and receive utilities."""

from radin.search.strategies import adaptive, baselines, greedy, learned, paper
from radin.search.strategies.base import Asks, Option, Problem, Strategy, get, names, strategy

__all__ = [
    "Asks",
    "Option",
    "Problem",
    "Strategy",
    "adaptive",
    "baselines",
    "get",
    "greedy",
    "learned",
    "names",
    "paper",
    "strategy",
]

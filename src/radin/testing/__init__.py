"""The suites that radin's own strategies and engines pass, for those of others: docs/extending.md.

They need no test library: each check is a function that raises AssertionError with what was expected and got.
"""

from radin.testing.engines import CHECKS as ENGINE_CHECKS
from radin.testing.engines import EngineCase, check_engine
from radin.testing.made import MadePool, SoupPool, make_pool
from radin.testing.strategies import check_strategy, checks_of

__all__ = [
    "ENGINE_CHECKS",
    "EngineCase",
    "MadePool",
    "SoupPool",
    "check_engine",
    "check_strategy",
    "checks_of",
    "make_pool",
]

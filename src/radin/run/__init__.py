"""The conductor: the only room that knows the order of things."""

from radin.run.cooking import cook
from radin.run.result import Gain, Passes, Result, Scored

__all__ = ["Gain", "Passes", "Result", "Scored", "cook"]

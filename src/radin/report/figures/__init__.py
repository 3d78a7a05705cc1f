"""The paper's figures and its Table 1 from a run directory: first as values, then as pictures.

    record = RunRecord.read("run")
    found = estimates(record)              # values, or Unavailable with a sentence
    write(found, "figures", "svg")         # a picture of them

Figure 1: ``mixing``. 2: ``estimates``. 3: ``ranked``. 4: ``curves``. 5: ``halves``. 6: ``sizes``. Table 1: ``table``.
"""

from radin.report.figures.budget import Budget, Table, curves, table
from radin.report.figures.files import FORMATS, write, write_table
from radin.report.figures.mixed import MixedFigure, mixing
from radin.report.figures.ranking import Estimates, Ranked, estimates, ranked
from radin.report.figures.size import Halves, Sizes, halves, sizes
from radin.report.figures.values import Unavailable, plain

FIGURES = {
    "1": mixing,
    "2": estimates,
    "3": ranked,
    "4": curves,
    "5": halves,
    "6": sizes,
}
"""By the number that the paper gives them: the function that makes its values from a RunRecord."""

__all__ = [
    "FIGURES",
    "FORMATS",
    "Budget",
    "Estimates",
    "Halves",
    "MixedFigure",
    "Ranked",
    "Sizes",
    "Table",
    "Unavailable",
    "curves",
    "estimates",
    "halves",
    "mixing",
    "plain",
    "ranked",
    "sizes",
    "table",
    "write",
    "write_table",
]

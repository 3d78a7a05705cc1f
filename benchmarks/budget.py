"""What a budget of passes buys: every strategy on real pools, validation, test and shifts, at every budget.

    python benchmarks/budget.py .pools/fashion-gentle --write               20 random sub-pools of 13 members
    python benchmarks/budget.py .pools/clipart-* --whole --write            three splits as one pool; whole pools too
    python benchmarks/budget.py --summary --write                           means over the pools measured so far
    python benchmarks/budget.py --quick --json                              builds a small pool of its own; minutes

A pool is a folder with task.py and members/*.safetensors, as benchmarks/pools and "radin demo" make them. Folders whose
names differ in a last "-0", "-1", ... are splits of one pool: the sub-pools are dealt out to them. True scores are kept
beside each (known/), so that no soup is evaluated twice. Choosing sees validation only. --json ends with one line:

    vs_paper_radin_pp, _se_pp      ours minus the better of the paper's two, test, mean of B = 1..8; standard error
    worst_vs_any_validation_pp     the largest deficit of ours to any strategy at any B, validation
    greedy_fraction                passes until ours has greedy's final validation score, over greedy's passes
    below_best_single              sub-pools times budgets where ours is below the best single member, validation
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded, here and in the workers
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file too it finds the package

    from benchmarks.spending.command import main

    main(__doc__ or "")

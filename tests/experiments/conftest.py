"""The experiments are no package that is installed: they are found beside the tests, as the benchmarks are."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

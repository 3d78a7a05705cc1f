"""The benchmark of the page opens it in a browser as the tests do: benchmarks are found beside the tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

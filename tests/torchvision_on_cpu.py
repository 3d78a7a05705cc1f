"""Makes torchvision's wheels, which are built for CUDA, importable beside a torch for the CPU alone.

They look for two operators that their own CUDA library would define, and fail to import without. Nothing here is needed
where torch and torchvision come from one place.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a Library's definitions go with it


class _BeforeImport(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname == "torchvision" and not _kept:
            import torch

            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "DEF")
                _kept.append(library)
                for operator in _OPERATORS:
                    library.define(operator)


def install() -> None:
    """Define the operators when torchvision is first imported."""
    if not any(isinstance(finder, _BeforeImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeImport())

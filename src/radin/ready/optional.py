"""Libraries that not everybody has: imported when they are needed, or named with the command that installs them."""

from __future__ import annotations

import importlib
from typing import Any

from radin.errors import TaskError

_PACKAGES = {
    "PIL": "pillow",
    "open_clip": "open-clip-torch",
    "pyarrow.parquet": "pyarrow",
}


def library(name: str, why: str) -> Any:
    """The module ``name``. Raises TaskError with the command that installs it; ``why``: what needs it."""
    package = _PACKAGES.get(name, name)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing and missing != name.split(".")[0]:
            raise TaskError(f"{why} needs {package}, which needs {missing}: pip install {missing}") from None
        if missing:
            raise TaskError(f"{why} needs {package}: pip install {package}") from None
        raise TaskError(f"{why} needs {package}, which cannot be imported here: {_first_line(error)}") from None
    except Exception as error:  # such as a torchvision built for another torch
        raise TaskError(f"{why} needs {package}, which cannot be imported here: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

"""Call a model on a batch and take its outputs, whatever form they come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray

from radin.data.batches import leaves
from radin.data.task import user_code
from radin.errors import OutputsError, TaskError

# What torch and the libraries below it say where they raise no torch.OutOfMemoryError.
_NO_MEMORY = ("out of memory", "can't allocate memory", "_ALLOC_FAILED", "bad_alloc")


class OutOfMemoryError(TaskError):
    """A batch of ``examples`` was too large for the memory of the device, or of this machine."""

    def __init__(self, examples: int, reason: str) -> None:
        super().__init__(f"a batch of {examples} examples does not fit in memory: {reason}")
        self.examples = examples
        self.reason = reason

    def __reduce__(self) -> tuple[type[OutOfMemoryError], tuple[int, str]]:
        return OutOfMemoryError, (self.examples, self.reason)


def lacks_memory(error: BaseException) -> bool:
    """Whether this says that memory, of a device or of this machine, has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


@contextmanager
def memory_errors(examples: int) -> Iterator[None]:
    """Turn a lack of memory, while a batch of ``examples`` is in work, into an OutOfMemoryError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise OutOfMemoryError(examples, reason) from None
        raise


def forward(model: torch.nn.Module, inputs: Any) -> Any:
    """Call the model as its inputs ask: a mapping by keyword, a tuple by position, a tensor alone.

    Raises OutOfMemoryError, and for any other failure a UserCodeError with the user's frames.
    """
    examples = next((len(tensor) for _, tensor in leaves(inputs) if tensor.ndim), 0)
    with user_code("the model's forward"), memory_errors(examples):
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, tuple):
            return model(*inputs)
        return model(inputs)


def tensor_of(result: Any) -> torch.Tensor:
    """The tensor of outputs in what a model returned.

    Takes a tensor, the ``logits`` of a mapping or object (transformers), "out" of a mapping (torchvision), or the first
    item of a tuple. Raises TaskError for anything else.
    """
    if isinstance(result, Mapping) and "logits" in result:
        found = result["logits"]
    elif isinstance(result, Mapping) and "out" in result:
        found = result["out"]
    elif hasattr(result, "logits"):
        found = result.logits
    elif isinstance(result, list | tuple) and result:
        found = result[0]
    else:
        found = result
    if not isinstance(found, torch.Tensor):
        raise TaskError(
            f"the model must return a tensor of outputs (or an object with .logits); got {type(result).__name__}"
        )
    return found


def outputs_of(result: Any, examples: int) -> torch.Tensor:
    """The (examples, classes) outputs in what a model returned; (examples,) becomes one column. Raises TaskError."""
    found = tensor_of(result)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or len(found) != examples:
        raise TaskError(
            f"the model must return one row of outputs per example, ({examples}, classes); "
            f"got {tuple(found.shape)}. Reduce it to that in outputs(model, inputs) of the task, or, where each token "
            "or pixel has a class, choose a metric by position, such as token_accuracy or mean_iou."
        )
    return found


def check_finite(name: str, rows: torch.Tensor, first: int | NDArray[Any]) -> None:
    """Raise OutputsError, naming the model and the example, when outputs hold NaN or infinity.

    ``first``: the number of the example of the first row, or of each.
    """
    if not torch.isfinite(rows).all():
        row = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
        example = first + row if isinstance(first, int) else int(first[row])
        raise OutputsError(
            f"{name}: its outputs hold NaN or infinity, first for example {example} of validation(). "
            "Its training diverged or the precision is too low: leave it out, or compute in float32."
        )

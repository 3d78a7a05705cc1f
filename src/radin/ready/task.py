"""A task from what was typed: --model and --data, read against the pool that they are for."""

from __future__ import annotations

from dataclasses import replace

from radin.data.task import Task, TaskText
from radin.errors import TaskError
from radin.ready import images, texts
from radin.ready.hf import hf_part
from radin.ready.open_clip import open_clip_part
from radin.ready.own import python_part, torch_part
from radin.ready.parts import DataPart, ModelPart, task_text
from radin.ready.specs import DataSpec, ModelSpec, read_columns, read_data, read_model
from radin.ready.tables import open_tables
from radin.ready.timm import timm_part
from radin.weights import Pool
from radin.weights.beside import folder_of

_TABLES = ("csv", "parquet", "datasets")
_TEXT_PARTS = {
    "texts": texts.text_part,
    "tokens": texts.token_part,
    "choices": texts.choice_part,
    "language": texts.language_part,
}


def ready_task(pool: Pool, model: str, data: str, *, columns: str | None = None, metric: str | None = None) -> TaskText:
    """The task for a pool whose architecture and data radin knows: what cook, evaluate, check and doctor take.

    model: "timm:NAME", "hf", "open_clip:NAME" or "torch:module:function". data: "imagefolder:DIR", "csv:FILE",
    "parquet:FILES", "datasets:SAVED_DIR" or "python:module:function", with ",test=PLACE" and ",train=PLACE" for more
    splits. columns: "text=COLUMN,label=COLUMN" where they cannot be guessed. metric: a name, where it is not to be the
    usual one of such models.

    The number of classes comes from the checkpoints, preprocessing from the model's library. Raises TaskError for what
    is not known, not there or does not fit together, and for a library that is missing, with the command that
    installs it.
    """
    model_spec, data_spec, asked = read_model(model), read_data(data), read_columns(columns)
    made = _model_part(model_spec, pool)
    read = _data_part(made, data_spec, asked, any(name.endswith("running_mean") for name in pool.names))
    text = task_text(model, data, columns, (made, read), metric or made.metric)
    found = TaskText(model, data, text, (*made.notes, *read.notes))
    Task.load(found).get_metric()
    return found


def _model_part(spec: ModelSpec, pool: Pool) -> ModelPart:
    if spec.kind == "timm":
        return timm_part(spec, pool.shapes)
    if spec.kind == "open_clip":
        return open_clip_part(spec, pool.shapes)
    if spec.kind == "torch":
        return torch_part(spec)
    return hf_part(spec, pool.shapes, [folder_of(member.checkpoint) for member in pool])


def _data_part(model: ModelPart, spec: DataSpec, asked: dict[str, tuple[str, ...]], batchnorm: bool) -> DataPart:
    if spec.kind == "python":
        if asked:
            raise TaskError(f"--columns is for tables; --data {spec.text} gives batches")
        if model.named_classes:
            raise TaskError(f"--data {spec.text}: the model classifies by names of classes; give imagefolder:DIR")
        read = python_part(spec)
        return read if batchnorm else replace(read, splits=tuple(s for s in read.splits if s != "calibration"))
    if model.family == "own":
        raise TaskError(
            f"--data {spec.text}: how pictures or texts become the model's inputs is not known for a model of your "
            "own. Give --data python:module:function, or for pictures a `transform` beside the model's function"
        )
    if spec.kind == "imagefolder":
        if asked:
            raise TaskError(f"--columns is for tables; --data {spec.text} is folders")
        if model.family != "images":
            raise TaskError(f"--data {spec.text}: the model takes text; give csv:, parquet: or datasets:")
        return images.folder_part(spec, model, batchnorm)
    tables = open_tables(spec)
    if model.family == "images":
        return images.table_part(tables, model, asked, batchnorm)
    return _TEXT_PARTS[model.family](tables, model, asked)

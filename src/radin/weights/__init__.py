"""Files and tensors: open checkpoints, form a pool, average it by a recipe, measure distances."""

from radin.weights.averaging import Soup, average, integer_source, recipe_metadata
from radin.weights.formats import Checkpoint, Reader, open_checkpoint
from radin.weights.geometry import Geometry, batchnorm_layers, dispersion, distances, geometry, gram
from radin.weights.pool import Member, Pool
from radin.weights.saving import check_output, read_metadata, read_recipe, save

__all__ = [
    "Checkpoint",
    "Geometry",
    "Member",
    "Pool",
    "Reader",
    "Soup",
    "average",
    "batchnorm_layers",
    "check_output",
    "dispersion",
    "distances",
    "geometry",
    "gram",
    "integer_source",
    "open_checkpoint",
    "read_metadata",
    "read_recipe",
    "recipe_metadata",
    "save",
]

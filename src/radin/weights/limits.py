"""How large what nobody vouches for may be: far above what real checkpoints have. SECURITY.md states it.

Together they keep the opening of one hostile file below about five seconds and one gigabyte of memory.
"""

from __future__ import annotations

TENSORS = 200_000  # names in one checkpoint; the largest mixtures of experts published have some 100,000
NAME = 1_000  # characters of a tensor's name
HEADER_BYTES = 32 * 2**20  # of a safetensors file's header; the format would allow 100 MB
INDEX_BYTES = 24 * 2**20  # of an index of shards
SHARDS = 10_000
METADATA_BYTES = 4 * 2**20  # of what radin writes beside a soup's tensors

DIRECTORY_BYTES = 32 * 2**20  # of a zip archive's table of contents
PICKLE_BYTES = 64 * 2**20  # of the part of a torch file that says which tensors there are
PICKLE_STEPS = 3_000_000  # instructions in it; a checkpoint of 1,000 tensors has 30,000
DIMENSIONS = 64  # what torch allows

# Bytes of all tensors that share one storage, as a multiple of the storage's. Weights are sometimes views of each other
# (tied, transposed, fused); a file of many large views is larger than it is by any factor.
VIEWS = 8

# What may come out of a compressed entry: this many times what is in the file, or this much if that is more. Weights
# compress to a half at best; zeros to a thousandth.
EXPANSION = 20
EXPANDED_BYTES = 64 * 2**20

"""The demo's pool for tests and benchmarks: trained once on a machine, kept in the ignored folder .pools."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

import radin.demo
from radin.demo import DemoPool, build

POOLS = Path(__file__).parents[1] / ".pools"


def demo_pool(*, seed: int = 0, members: int = 12, data: str = "mnist") -> DemoPool:
    """The pool of these settings, built by whichever process asks first while the others wait for it.

    Its folder's name carries a hash of the settings and of the demo's code, so that a changed demo is a new pool.
    """
    digest = hashlib.sha256(json.dumps([seed, members, data, torch.__version__]).encode())
    for name in ("data.py", "training.py", "pool.py"):
        digest.update((Path(radin.demo.__file__).parent / name).read_bytes())
    return build(POOLS / f"demo-{digest.hexdigest()[:12]}", seed=seed, members=members, data=data)

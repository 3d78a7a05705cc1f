"""A small real pool to break: a BatchNorm network on scikit-learn's digits, trained in seconds and kept.

Its task tells what is run: every batch that goes through a model is a line in the file $FAULTS_LOG, a hash of the
model's weights and one of the batch. The program does the same for every soup that it is given.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

POOLS = Path(__file__).resolve().parents[2] / ".pools"
MEMBERS = 7

TASK = '''
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

_FOLDER = Path(__file__).resolve().parent
_DATA = np.load(_FOLDER / "digits.npz")
_INPUTS, _TARGETS = torch.from_numpy(_DATA["inputs"]), torch.from_numpy(_DATA["targets"])


class Counted(nn.Sequential):
    """Says what it is run on, unless its statistics are being estimated."""

    def forward(self, x):
        log = os.environ.get("FAULTS_LOG")
        if log and not self[1].training:
            weights = 0
            for tensor in self.state_dict().values():
                if tensor.is_floating_point():
                    weights = zlib.crc32(tensor.numpy().tobytes(), weights)
            line = f"{weights:08x} {zlib.crc32(x.numpy().tobytes()):08x}\\n".encode()
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.write(descriptor, line)
            os.close(descriptor)
        return super().forward(x)


def model():
    return Counted(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))


def _batches(first, last, size=100):
    return list(zip(_INPUTS[first:last].split(size), _TARGETS[first:last].split(size)))


def validation():
    return _batches(700, 1300)


def test():
    return _batches(1300, 1797)


def calibration():
    return _batches(0, 300)
'''

PROGRAM = """#!/bin/sh
# A score that only the bytes of the soup's tensors decide: the header before them may be written in any order.
header=$(od -An -tu8 -N8 "$1" | tr -d ' ')
crc=$(tail -c +$((header + 9)) "$1" | cksum | cut -d' ' -f1)
[ -n "$FAULTS_LOG" ] && echo "$crc program" >> "$FAULTS_LOG"
echo "0.$crc"
"""


def faults_pool(members: int = MEMBERS, folder: Path | None = None) -> Path:
    """The folder of the pool: members/*.safetensors, task.py, digits.npz, score.sh; built where it is not there."""
    key = hashlib.sha256(f"{members} {torch.__version__} {Path(__file__).read_text()}".encode()).hexdigest()[:12]
    place = (POOLS if folder is None else folder) / f"faults-{members}-{key}"
    if not place.exists():
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _build(partial, members)
        try:
            partial.rename(place)
        except OSError:  # another process was quicker
            shutil.rmtree(partial, ignore_errors=True)
    return place


def _build(folder: Path, members: int) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs, targets = (images / 16).astype(np.float32), labels.astype(np.int64)
    (folder / "members").mkdir(parents=True)
    np.savez(folder / "digits.npz", inputs=inputs, targets=targets)
    (folder / "task.py").write_text(TASK)
    (folder / "score.sh").write_text(PROGRAM)
    (folder / "score.sh").chmod(0o755)
    data = torch.from_numpy(inputs), torch.from_numpy(targets)
    torch.manual_seed(0)
    start = _network()
    _train(start, data, 0.05, 4, 0, range(300))
    for k in range(members):
        net = _network()
        net.load_state_dict(start.state_dict())
        # Each sees its own few images, for too long: what averaging is good for.
        first = 75 * (k % 7)
        _train(net, data, 0.075 * (1 + k % 3), 8 - k % 2, k + 1, range(first, first + 150))
        save_file(net.state_dict(), folder / "members" / f"run-{k:02d}.safetensors")


def known_lines(folder: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The hashes by which the log knows the members' weights, and the batches of validation()."""
    weights = set()
    for path in (folder / "members").glob("*.safetensors"):
        tensors, crc = load_file(path), 0
        for name, tensor in _network().state_dict().items():
            if tensor.is_floating_point():
                crc = zlib.crc32(tensors[name].numpy().tobytes(), crc)
        weights.add(f"{crc:08x}")
    inputs = np.load(folder / "digits.npz")["inputs"][700:1300]
    batches = {f"{zlib.crc32(inputs[at : at + 100].tobytes()):08x}" for at in range(0, 600, 100)}
    return frozenset(weights), frozenset(batches)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))


def _train(
    net: nn.Module, data: tuple[torch.Tensor, torch.Tensor], rate: float, epochs: int, seed: int, rows: range
) -> None:
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    inputs, targets = data[0][rows.start : rows.stop], data[1][rows.start : rows.stop]
    net.train()
    for _ in range(epochs):
        for picked in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[picked]), targets[picked]).backward()
            optimizer.step()
    net.eval()

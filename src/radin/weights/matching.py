"""Members whose tensors are named differently though they are the same: wrapper prefixes, and tied tensors left out.

Names are changed only where that makes all of a member's names those of the others; never some of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from radin.weights.formats import Checkpoint
from radin.weights.stored import WRAPPED, common_prefix, unwrapped

_MISSING = 64  # tensors that a member may lack because they are tied; models have one or two such pairs


def matched(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The same with names changed where they come to fit, and tied tensors added; each says so in its notes."""
    found = list(checkpoints)
    if len({checkpoint.names for checkpoint in found}) < 2:
        return found
    common = Counter(checkpoint.names for checkpoint in found).most_common(1)[0][0]
    reference = next(checkpoint for checkpoint in found if checkpoint.names == common)
    found = [checkpoint if checkpoint.names == common else _renamed(checkpoint, reference) for checkpoint in found]
    return _tied(found)


def renamings(names: Sequence[str], wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Ways to call all of ``names`` otherwise that ``wanted`` suggests, and how to say it: {name: new name}."""
    head, target = common_prefix(names), common_prefix(wanted)
    if head:
        yield f"prefix {head} taken off", {name: name.removeprefix(head) for name in names}
    if target:
        yield f"prefix {target} put before", {name: target + name for name in names}
    if head and target and head != target:
        yield f"prefix {target} in the place of {head}", {name: target + name.removeprefix(head) for name in names}
    plain = {unwrapped(name): name for name in wanted}
    if len(plain) == len(wanted):
        ways = {name: plain.get(unwrapped(name), name) for name in names}
        if len(set(ways.values())) == len(ways) and any(name != new for name, new in ways.items()):
            yield f"wrappers ({', '.join(WRAPPED)}) taken off or put in", ways


def _renamed(checkpoint: Checkpoint, reference: Checkpoint) -> Checkpoint:
    for how, names in renamings(checkpoint.names, reference.names):
        shapes = {names[name]: shape for name, shape in checkpoint.shapes.items()}
        if shapes == dict(reference.shapes):
            return checkpoint.renamed(names, f"{how} all {len(names)} names, to fit the other members")
    return checkpoint


def _tied(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Where some members list a tied pair and others one of it only: the other name added, for the same tensor.

    transformers' save_pretrained leaves such names out, and torch.save does not. A pair is tied if all members that
    list both say so, or hold the same values under both.
    """
    every = set().union(*(checkpoint.names for checkpoint in checkpoints))
    lacking = sorted(name for name in every if any(name not in checkpoint.shapes for checkpoint in checkpoints))
    if not lacking or len(lacking) > _MISSING:
        return checkpoints
    shared = sorted(every - set(lacking))
    for name in lacking:
        listing = [checkpoint for checkpoint in checkpoints if name in checkpoint.shapes]
        partners = [other for other in shared if all(_are_tied(checkpoint, name, other) for checkpoint in listing)]
        if not partners:
            continue
        groups = [checkpoint.aliases.get(partners[0], partners[0]) for checkpoint in listing]
        same = [
            other
            for other in partners[1:]
            if any(
                checkpoint.aliases.get(other, other) != kept for checkpoint, kept in zip(listing, groups, strict=True)
            )
        ]
        if same:  # several tensors hold these very values: which one it is tied to, nothing says
            continue
        note = f"{name} is tied to {partners[0]}, which stands for it where it is not stored"
        checkpoints = [checkpoint.with_tied(name, partners[0], note) for checkpoint in checkpoints]
    return checkpoints


def _are_tied(checkpoint: Checkpoint, one: str, other: str) -> bool:
    aliases = checkpoint.aliases
    if aliases.get(one, one) == aliases.get(other, other):
        return True
    if checkpoint.shapes[one] != checkpoint.shapes[other] or checkpoint.dtypes[one] != checkpoint.dtypes[other]:
        return False
    with checkpoint.open() as reader:
        return torch.equal(reader[one], reader[other])

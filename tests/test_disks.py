"""Which disk a path is on, whether locks hold there, and that files on a network's disk are read and never mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from radin import disks
from radin.errors import CheckpointError
from radin.outputs.files import open_array, open_targets
from radin.weights import Pool, average, open_checkpoint

Mounted = Callable[[Path, str], None]

LINE = "36 25 0:32 / {place} rw,relatime shared:1 - {kind} server:/export rw,vers=4.2\n"


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """Says that a folder is a mount of a kind, as Linux's table of mounts has it."""
    table = tmp_path / "mountinfo"
    table.write_text(LINE.format(place="/", kind="ext4"))

    def mount(folder: Path, kind: str) -> None:
        place = str(folder.resolve()).replace("\\", "\\134").replace(" ", "\\040")
        table.write_text(table.read_text() + LINE.format(place=place, kind=kind))
        disks._on_network.cache_clear()

    monkeypatch.setattr(disks, "MOUNTS", table)
    disks._on_network.cache_clear()
    yield mount
    disks._on_network.cache_clear()


def maps(path: Path) -> int:
    return sum(line.rstrip().endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines())


def test_the_longest_mount_that_holds_a_path_is_its_disk(tmp_path: Path, mounted: Mounted) -> None:
    shared = tmp_path / "a disk"
    (shared / "inner").mkdir(parents=True)
    mounted(shared, "nfs4")
    assert disks.mount_of(shared / "runs" / "new") == disks.Mount(str(shared), "nfs4")
    assert disks.mount_of(tmp_path / "a disk too") == disks.Mount("/", "ext4")
    assert disks.is_network(shared / "m.safetensors")
    assert not disks.is_network(tmp_path / "m.safetensors")
    (tmp_path / "link").symlink_to(shared)
    assert disks.is_network(tmp_path / "link" / "m.safetensors")
    mounted(shared / "inner", "xfs")
    assert not disks.is_network(shared / "inner" / "m.safetensors")
    mounted(shared, "tmpfs")  # mounted over it
    assert not disks.is_network(shared / "m.safetensors")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre", "gpfs", "cifs", "smb3", "fuse.sshfs", "fuse", "9p"])
def test_no_lock_is_trusted_on_a_networks_disk(tmp_path: Path, mounted: Mounted, kind: str) -> None:
    mounted(tmp_path, kind)
    assert f"{kind} file system" in str(disks.locks_fail(tmp_path))


def test_a_known_disk_costs_no_process_and_another_is_tried(
    tmp_path: Path, mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_tried", {})
    with monkeypatch.context() as patch:
        patch.setattr(disks.subprocess, "Popen", None)
        assert disks.locks_fail(tmp_path) is None
    mounted(tmp_path, "newfs")
    assert disks.locks_fail(tmp_path) is None  # SQLite's lock holds here, whatever it is called
    assert [path.name for path in tmp_path.iterdir()] == ["mountinfo"]
    with monkeypatch.context() as patch:
        patch.setattr(disks.subprocess, "Popen", None)
        assert disks.locks_fail(tmp_path) is None  # known by now
    # A disk whose locks do nothing: SQLite without any.
    monkeypatch.setattr(disks, "_tried", {})
    without = disks._OTHER.replace("sys.argv[1],", "'file:' + sys.argv[1] + '?vfs=unix-none', uri=True,")
    monkeypatch.setattr(disks, "_OTHER", without)
    assert disks.locks_fail(tmp_path) == "a lock there was given to two processes at once"
    monkeypatch.setattr(disks, "_tried", {})
    monkeypatch.setattr(disks, "_OTHER", "raise SystemExit")
    assert disks.locks_fail(tmp_path) == "a lock could not be tried there between two processes"


def written(folder: Path) -> list[Path]:
    import torch.distributed.checkpoint as dcp

    folder.mkdir()
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(5, dtype=torch.bfloat16), "n": torch.tensor(3)}
    save_file(tensors, folder / "a.safetensors")
    torch.save(tensors, folder / "b.pt")
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "old.pt", _use_new_zipfile_serialization=False)
    dcp.save(tensors, checkpoint_id=folder / "dcp", no_dist=True)
    return [folder / name for name in ("a.safetensors", "b.pt", "old.pt", "dcp")]


def test_checkpoints_on_a_networks_disk_are_not_mapped(tmp_path: Path, mounted: Mounted) -> None:
    for path in written(tmp_path / "net"):
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix == ".distcp"]
        seen = []
        for kind in ("ext4", "nfs4"):
            mounted(tmp_path / "net", kind)
            held = open_checkpoint(path)
            with held.open() as reader:
                tensors = {name: reader[name] for name in held.names}
                seen.append(sum(map(maps, files)))
                assert tensors["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
                assert tensors["v"].dtype == torch.bfloat16
                assert tensors["v"].tolist() == [1.0] * 5
                assert tensors["n"].item() == 3
            del tensors, reader, held
        assert seen[0] or path.name == "dcp"  # read by pieces, whose maps end with them
        assert seen[1] == 0, path


def test_a_pool_on_a_networks_disk_is_the_same_pool(tmp_path: Path, mounted: Mounted) -> None:
    (tmp_path / "net").mkdir()
    for k in range(3):
        save_file({"w": torch.full((70_000,), float(k)), "b": torch.ones(2)}, tmp_path / "net" / f"m{k}.safetensors")
    before = Pool.open(tmp_path / "net")
    mean = average(before)
    mounted(tmp_path / "net", "nfs4")
    pool = Pool.open(tmp_path / "net")
    assert pool.fingerprints == before.fingerprints
    assert torch.equal(average(pool)["w"], mean["w"])
    whole = (tmp_path / "net" / "m1.safetensors").read_bytes()
    (tmp_path / "net" / "m1.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"m1\.safetensors: truncated .* its header expects"):
        open_checkpoint(tmp_path / "net" / "m1.safetensors")
    (tmp_path / "net" / "m1.safetensors").write_bytes(whole.replace(b'"shape":[2]', b'"shape":[3]'))
    with pytest.raises(CheckpointError, match=r"m1\.safetensors: .*damaged"):
        open_checkpoint(tmp_path / "net" / "m1.safetensors")


def test_outputs_on_a_networks_disk_are_not_mapped(tmp_path: Path, mounted: Mounted) -> None:
    (tmp_path / "net").mkdir()
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    npy, safe, targets = (tmp_path / "net" / name for name in ("a.npy", "a.safetensors", "targets.safetensors"))
    np.save(npy, array)
    save_file({"outputs": torch.from_numpy(array)}, safe)
    save_file({"targets": torch.arange(4)}, targets)
    for kind, mapped in (("ext4", True), ("nfs4", False)):
        mounted(tmp_path / "net", kind)
        for path in (npy, safe):
            found = open_array(path)
            assert bool(maps(path)) == mapped
            assert found.tolist() == array.tolist()
            del found
        assert open_targets(targets).tolist() == [0, 1, 2, 3]

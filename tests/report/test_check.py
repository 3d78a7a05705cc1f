"""What 'radin check' says of pools that should, should not, and should not quite be averaged."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from radin import Pool
from radin.diagnose.check import check_pool
from radin.engine.device import Device
from radin.report.check import check_parts, verdict


def save(folder, members):
    folder.mkdir(exist_ok=True)
    for k, member in enumerate(members):
        save_file(member, folder / f"{k}.safetensors")
    return folder


def moved(start, seed, step):
    """A fine-tuning of ``start``: every tensor a step away in a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + step * torch.randn(t.shape, generator=generator) for name, t in start.items()}


def fresh(seed):
    return {"w": torch.randn(300, generator=torch.Generator().manual_seed(seed)), "b": torch.ones(5)}


def look(folder, **options):
    return check_pool(Pool.open(folder), None, Device.create("cpu"), **options)


def plain(found):
    return "\n".join(str(part) for part in check_parts(found)[1:])


def test_one_initialisation_can_be_averaged(tmp_path):
    found = look(save(tmp_path / "p", [moved(fresh(0), k, 0.1) for k in range(1, 6)]))
    assert verdict(found) == "these checkpoints can be averaged"
    assert [finding.title for finding in found.findings] == ["one initialisation"]
    assert "outlier)" not in plain(found)


@pytest.mark.parametrize("count", [1, 2])
def test_outliers_are_named_with_how_far_they_lie(tmp_path, count):
    members = [moved(fresh(0), k, 0.05) for k in range(1, 9)] + [moved(fresh(0), 20 + k, 0.3) for k in range(count)]
    found = look(save(tmp_path / "p", members))
    (first, times), *_ = found.spread.outliers
    assert len(found.spread.outliers) == count
    assert 4 < times < 7
    name = found.pool.member_names[first]
    assert name in {"8", "9"}
    if count == 1:
        words = (
            f"these checkpoints fit together; 8 is an outlier: {times:.1f} times as far from their mean as the median"
        )
    else:
        words = "are outliers: up to "
        assert f"{name}, " in verdict(found)
    assert words in verdict(found)
    assert f"warning: outliers: outliers, in times the median distance to the members' mean: {name} (" in plain(found)
    assert found.to_json()["findings"][1]["level"] == "warning"


def test_no_common_initialisation_is_an_honest_no(tmp_path):
    found = look(save(tmp_path / "p", [fresh(k) for k in range(5)]))
    assert verdict(found).startswith("averages of these will not work")
    assert "problem: no common initialisation: " in plain(found)
    assert found.to_json()["findings"][0]["level"] == "problem"


def test_scales_that_begin_alike_do_not_make_trainings_from_scratch_related(tmp_path):
    def from_scratch(seed):
        torch.manual_seed(seed)
        return toy.model().state_dict()

    found = look(save(tmp_path / "p", [from_scratch(k) for k in range(4)]))
    assert found.spread.distances[0, 1] < 1.0  # over the whole mean, of which BatchNorm's ones are the most
    assert found.geometry.matrix_norm < 0.5 * found.geometry.mean_norm
    assert verdict(found).startswith("averages of these will not work")


def test_several_training_runs_are_told_apart(tmp_path):
    members = [moved(fresh(start), 10 * start + k, 0.03) for start in (0, 1) for k in range(1, 5)]
    found = look(save(tmp_path / "p", members))
    assert verdict(found).startswith("averages across these will not work")
    assert "2 training runs with different initialisations (4, 4 members)" in verdict(found)


def test_without_distances_nothing_is_promised(tmp_path):
    found = look(save(tmp_path / "p", [fresh(k) for k in range(5)]), distances=False)
    assert found.findings == ()
    assert "was not looked at" in verdict(found)
    assert "distances" not in found.to_json()


def test_the_command_says_so_and_exits_with_zero(radin_command, tmp_path):
    done = radin_command("check", save(tmp_path / "p", [fresh(k) for k in range(4)]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().split("\n")[-1].startswith("averages of these will not work")


def test_json_of_the_command_has_the_findings(toy_folder, radin_command, tmp_path):
    weights = load_file(toy_folder / "run-0.safetensors")
    save_file({n: t * 9 if t.is_floating_point() else t for n, t in weights.items()}, tmp_path / "huge.safetensors")
    found = json.loads(radin_command("check", toy_folder, tmp_path, "--json").stdout)
    warning = next(finding for finding in found["findings"] if finding["title"] == "outliers")
    assert "huge (" in warning["sentence"]


def test_average_shows_its_progress(toy_folder, tmp_path, monkeypatch):
    from radin.cli.group import cli
    from radin.report import progress as shown

    told = []
    monkeypatch.setattr(
        shown.ConsoleProgress, "__call__", lambda self, what, done, total: told.append((what, done, total))
    )
    out = str(tmp_path / "soup.safetensors")
    cli.main(["average", str(toy_folder), "-o", out], standalone_mode=False)
    averaging = [(done, total) for what, done, total in told if what.endswith("averaging")]
    assert averaging
    assert averaging[-1][0] == averaging[-1][1] > 0

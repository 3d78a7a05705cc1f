"""What the doctor says of real small pools: the sick ones are recognised, and the numbers are those of plain torch."""

import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file

import radin
import toy
from radin import Pool, RadinError, Task
from radin.checksums import sealed
from radin.diagnose.examine import first_examples
from radin.errors import PoolError, RunError, TaskError
from radin.recipe import Recipe
from radin.run.ledger import Ledger
from radin.stats.ranks import spearman


def titles(diagnosis, level):
    return [finding.title for finding in diagnosis.findings if finding.level == level]


def the(diagnosis, title):
    (found,) = [finding for finding in diagnosis.findings if finding.title == title]
    return found


def plain_outputs(tensors, rows=toy.VALIDATION, *, calibrate=False):
    model = toy.model()
    model.load_state_dict(tensors)
    if calibrate:
        model[3].p = 0.0
        torch.optim.swa_utils.update_bn([x for x, _ in toy.batches(toy.TRAINING)], model)
    model.eval()
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in toy.batches(rows)]).numpy()


def labels(rows=toy.VALIDATION):
    return torch.cat([y for _, y in toy.batches(rows)]).numpy()


def mixed(members, weights):
    return {
        name: sum(w * m[name].double() for w, m in zip(weights, members, strict=True)).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in members[0].items()
    }


@pytest.fixture(scope="module")
def task():
    return Task(
        model=toy.model,
        validation=lambda: toy.batches(toy.VALIDATION),
        calibration=lambda: toy.batches(toy.TRAINING),
    )


@pytest.fixture(scope="module")
def healthy(toy_pool, task):
    return radin.doctor(toy_pool, task)


@pytest.fixture(scope="module")
def other_start(tmp_path_factory):
    """Two good members fine-tuned from another initialisation."""
    folder = tmp_path_factory.mktemp("other_start")
    torch.manual_seed(77)
    start = toy.model()
    toy._train(start, 0.05, 2, 5, slice(0, 300))
    for k in range(2):
        net = toy.model()
        net.load_state_dict(start.state_dict())
        toy._train(net, 0.05 * (1 + k), 5, k + 50, slice(0, 700))
        save_file(net.state_dict(), folder / f"other-start-{k}.safetensors")
    return folder


@pytest.fixture(scope="module")
def cooked(toy_pool, task, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    radin.cook(toy_pool, task, budget=12, out=out, strategy="random")
    return out


def test_a_healthy_pool_has_no_problems(healthy):
    assert titles(healthy, "problem") == []
    assert titles(healthy, "warning") == []
    assert {"one initialisation", "BatchNorm", "members' scores", "agreement", "interpolation"} <= set(
        titles(healthy, "ok")
    )
    levels = [("problem", "warning", "note", "ok").index(finding.level) for finding in healthy.findings]
    assert levels == sorted(levels)
    assert healthy.spread.groups == (tuple(range(6)),)


def test_scores_and_agreement_are_those_of_plain_torch(healthy, toy_pool):
    chosen = np.stack([plain_outputs(toy_pool.tensors(k)).argmax(1) for k in range(6)])
    right = chosen == labels()
    for k, found in enumerate(healthy.slice.members):
        assert found.score == pytest.approx(right[k].mean(), abs=1e-12)
        assert found.stderr == pytest.approx(scipy.stats.sem(right[k]), rel=1e-9)
    agreement = (chosen[:, None] == chosen[None]).mean(-1)
    np.testing.assert_allclose(healthy.slice.agreement, agreement)
    mean = agreement[np.triu_indices(6, 1)].mean()
    assert f"{mean:.1%} of the examples" in the(healthy, "agreement").sentence
    assert healthy.slice.order[0] == right.mean(1).argmax()


def test_interpolation_and_soups_are_those_of_plain_torch(healthy, toy_pool):
    members = [toy_pool.tensors(k) for k in range(6)]
    soups, best = healthy.slice.soups, healthy.slice.order[0]
    singles = [(plain_outputs(m).argmax(1) == labels()).astype(float) for m in members]
    farthest = int(healthy.spread.distances[best].argmax())
    ends = [path.second for path in soups.interpolations]
    assert ends == list(dict.fromkeys([*healthy.slice.order[1:4], farthest]))
    for path in soups.interpolations:
        gaps = []
        for share, score in zip((0.25, 0.5, 0.75), path.scores, strict=True):
            soup = mixed([members[path.first], members[path.second]], [1 - share, share])
            right = (plain_outputs(soup, calibrate=True).argmax(1) == labels()).astype(float)
            assert score == pytest.approx(right.mean(), abs=1e-12)
            gaps.append((1 - share) * singles[path.first] + share * singles[path.second] - right)
        deepest = max(gaps, key=np.mean)
        assert path.barrier == pytest.approx(deepest.mean(), abs=1e-12)
        assert path.barrier_stderr == pytest.approx(scipy.stats.sem(deepest), rel=1e-9)
    uniform = plain_outputs(mixed(members, [1 / 6] * 6), calibrate=True).argmax(1) == labels()
    assert soups.together.score == pytest.approx(uniform.mean(), abs=1e-12)
    outputs = np.stack([plain_outputs(m) for m in members]).astype(float)
    assert soups.ensemble.score == pytest.approx((outputs.mean(0).argmax(1) == labels()).mean(), abs=1e-12)
    best_subset = outputs[list(soups.subset)].mean(0).argmax(1) == labels()
    assert soups.promised == pytest.approx(best_subset.mean(), abs=1e-12)
    assert soups.promised >= soups.ensemble.score


def test_members_of_another_initialisation_are_named_and_the_barrier_is_seen(toy_folder, other_start, task):
    pool = Pool.open([toy_folder, other_start])
    found = radin.doctor(pool, task)
    names = {k: member.name for k, member in enumerate(pool)}
    assert sorted(names[k] for k in found.spread.groups[1]) == sorted(n for n in names.values() if "other-start" in n)
    groups = the(found, "several training runs")
    assert groups.level == "problem"
    assert all(names[k] in groups.sentence for k in found.spread.groups[1])
    assert not any(f"run-{k}" in groups.sentence for k in range(6))
    across = [
        p
        for p in found.slice.soups.interpolations
        if ("other-start" in names[p.first]) != ("other-start" in names[p.second])
    ]
    assert max(path.barrier for path in across) > 0.03
    assert max(path.barrier / path.barrier_stderr for path in across) > 3
    barriers = [f for f in found.findings if f.title == "barrier"]
    assert barriers
    assert barriers[0].level == "problem"
    assert found.findings[0].level == "problem"


def test_trainings_that_share_nothing_are_not_called_one_pool(tmp_path):
    for k in range(3):
        torch.manual_seed(900 + k)
        net = toy.model()
        toy._train(net, 0.05, 3, k, slice(0, 300))
        save_file(net.state_dict(), tmp_path / f"{k}.safetensors")
    found = radin.doctor(tmp_path)
    assert found.spread.unrelated
    assert found.findings[0].title == "no common initialisation"
    assert "one initialisation" not in titles(found, "ok")


def test_an_outlier_is_named_and_tried_without(toy_folder, toy_pool, task, tmp_path, healthy):
    members = [toy_pool.tensors(k) for k in range(6)]
    mean = mixed(members, [1 / 6] * 6)
    away = {n: mean[n] + 6 * (t - mean[n]) if "weight" in n or "bias" in n else t for n, t in members[1].items()}
    save_file(away, tmp_path / "away.safetensors")
    pool = Pool.open([toy_folder, tmp_path])
    found = radin.doctor(pool, task)
    (far,) = found.spread.outliers
    assert pool[far[0]].name.endswith("away")

    def flat(tensors):
        return torch.cat([t.double().flatten() for n, t in tensors.items() if "weight" in n or "bias" in n])

    weights = torch.stack([flat(pool.tensors(k)) for k in range(7)])
    lengths = (weights - weights.mean(0)).norm(dim=1)
    assert far[1] == pytest.approx(float(lengths[far[0]] / lengths.median()), rel=1e-6)
    warning = the(found, "outliers")
    assert warning.level == "warning"
    assert f"({far[1]:.1f} times)" in warning.sentence
    assert found.slice.soups.core.score == healthy.slice.soups.together.score
    core, together = found.slice.soups.core, found.slice.soups.together
    stderr = scipy.stats.sem(core.values - together.values)
    assert f"{core.score - together.score:+.4f} ± {stderr:.4f} against" in the(found, "the core of the pool").sentence
    assert healthy.slice.soups.core is None


def test_duplicates_and_near_duplicates_are_named(toy_folder, toy_pool, tmp_path):
    shutil.copy(toy_folder / "run-2.safetensors", tmp_path / "copy.safetensors")
    near = {n: t + 1e-4 if t.is_floating_point() else t for n, t in toy_pool.tensors(3).items()}
    save_file(near, tmp_path / "near.safetensors")
    pool = Pool.open([toy_folder, tmp_path])
    found = radin.doctor(pool)
    exact = the(found, "duplicates")
    assert exact.level == "note"
    assert "1 files" in exact.sentence
    assert "copy.safetensors" in exact.sentence or "run-2" in exact.sentence
    (pair,) = found.spread.alike
    assert sorted(pool[k].name.split("/")[-1] for k in pair) == ["near", "run-3"]
    assert the(found, "near duplicates").level == "note"


def test_batchnorm_without_calibration_is_a_warning(toy_pool, task, healthy):
    assert the(healthy, "BatchNorm").level == "ok"
    assert the(radin.doctor(toy_pool), "BatchNorm").level == "note"
    found = the(radin.doctor(toy_pool, replace(task, calibration=None), examples=100), "BatchNorm")
    assert found.level == "warning"
    assert "1 BatchNorm layer," in found.sentence
    assert "calibration()" in found.advice


def test_a_diverged_member_is_a_finding_and_the_rest_is_examined(toy_folder, toy_pool, task, tmp_path, healthy):
    wild = {
        n: t * 1e30 if n == "4.weight" else t * 1e20 if n == "1.weight" else t for n, t in toy_pool.tensors(0).items()
    }
    save_file(wild, tmp_path / "a-wild.safetensors")
    pool = Pool.open([tmp_path, toy_folder])
    found = radin.doctor(pool, task)
    (wild_at,) = [k for k, member in enumerate(pool) if "wild" in member.name]
    assert the(found, "member diverged").level == "problem"
    assert found.slice.members[wild_at] is None
    assert wild_at not in found.slice.soups.usable
    assert found.slice.soups.together.score == healthy.slice.soups.together.score
    json.dumps(found.to_json(), allow_nan=False)


def test_only_the_first_examples_are_read_in_the_users_batches(toy_pool, task):
    read = []

    def validation():
        for batch in toy.batches(toy.VALIDATION):
            read.append(len(batch[0]))
            yield batch

    part = first_examples(replace(task, validation=validation), 250)
    batches = list(part.batches("validation"))
    assert [len(x) for x, _ in batches] == [100, 100, 50]
    assert read == [100, 100, 100]
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.cat([x for x, _ in toy.batches(slice(700, 950))]))
    found = radin.doctor(toy_pool, task, examples=250)
    assert found.slice.examples == 250
    for k in (0, 5):
        right = plain_outputs(toy_pool.tensors(k), slice(700, 950)).argmax(1) == labels(slice(700, 950))
        assert found.slice.members[k].score == pytest.approx(right.mean(), abs=1e-12)


def test_a_sorted_validation_is_noticed(toy_pool, task):
    images, targets = (torch.cat(parts) for parts in zip(*toy.batches(toy.VALIDATION), strict=True))
    order = targets.argsort(stable=True)
    found = radin.doctor(toy_pool, replace(task, validation=[(images[order], targets[order])]), examples=100)
    assert found.slice.classes_seen == 2
    assert "2 of 10 classes" in the(found, "slice not representative").sentence


def test_where_lower_is_better_a_barrier_is_still_positive(toy_folder, other_start, task):
    pool = Pool.open([toy_folder / "run-0.safetensors", other_start])
    found = radin.doctor(pool, replace(task, metric="nll", calibration=None))
    ends = [found.slice.members[k].score for k in range(3)]
    assert ends[found.slice.order[0]] == min(ends)
    for path in found.slice.soups.interpolations:
        line = [(1 - a) * ends[path.first] + a * ends[path.second] for a in (0.25, 0.5, 0.75)]
        assert path.barrier == pytest.approx(max(s - at for s, at in zip(path.scores, line, strict=True)), abs=1e-9)
    across = [p for p in found.slice.soups.interpolations if 0 in (p.first, p.second)]
    assert max(path.barrier for path in across) > 0.05


def test_one_model_at_a_time(toy_pool, task):
    built, alive = [], []

    def model():
        alive.append(sum(reference() is not None for reference in built))
        net = toy.model()
        built.append(weakref.ref(net))
        return net

    radin.doctor(toy_pool, replace(task, model=model), examples=100)
    assert len(built) > 6  # one each for the members, and one that all soups are put into
    assert max(alive) == 0


def test_a_run_says_how_the_estimate_predicted(cooked, toy_pool, healthy):
    found = radin.doctor(toy_pool, run=cooked).run
    written = json.loads((cooked / "result.json").read_text())
    pairs = [(e["score"], e["estimate"]) for e in written["evaluations"] if e["size"] > 1]
    truth, estimate = np.array(pairs).T
    assert (found.soups, found.compared, found.finished) == (len(pairs), len(pairs), True)
    assert len(pairs) == 12
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(truth, estimate).statistic, abs=1e-12)
    assert found.bias == pytest.approx((truth - estimate).mean(), abs=1e-12)
    assert found.bias_stderr == pytest.approx(scipy.stats.sem(truth - estimate), rel=1e-9)
    assert found.best_single == pytest.approx(written["best_single"]["score"])
    assert found.gain == pytest.approx(truth.max() - written["best_single"]["score"], abs=1e-12)
    assert found.gain == pytest.approx(written["gain"]["difference"], abs=1e-12)
    assert found.gain_stderr == pytest.approx(written["gain"]["stderr"], rel=1e-9)


def test_a_run_that_is_under_way_gives_the_same_figures(cooked, toy_pool, tmp_path):
    shutil.copytree(cooked, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    there, here = (radin.doctor(toy_pool, run=path).run for path in (cooked, tmp_path / "run"))
    assert not here.finished
    assert here.compared == 12
    assert here.spearman == pytest.approx(there.spearman, abs=1e-12)
    assert here.bias == pytest.approx(there.bias, abs=1e-12)
    shutil.rmtree(tmp_path / "run" / "outputs")
    found = radin.doctor(toy_pool, run=tmp_path / "run")
    assert (found.run.soups, found.run.compared, found.run.spearman) == (12, 0, None)
    assert the(found, "estimate against truth").level == "note"


def test_a_run_is_looked_at_and_left_as_it_is(cooked, toy_pool, tmp_path):
    shutil.copytree(cooked, tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.sqlite"
    ledger.chmod(0o444)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in ledger.parent.rglob("*") if path.is_file()}
    radin.doctor(toy_pool, run=tmp_path / "run")
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in ledger.parent.rglob("*") if path.is_file()}
    assert after == before


def test_an_estimate_far_above_the_truth_is_a_warning(cooked, toy_pool, tmp_path):
    shutil.copytree(cooked, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    for entry in written["evaluations"]:
        entry["estimate"] = 1.2 - 0.1 * entry["score"]
    (tmp_path / "run" / "result.json").write_text(json.dumps(sealed(written)))
    found = radin.doctor(toy_pool, run=tmp_path / "run")
    assert found.run.spearman == pytest.approx(-1.0)
    assert the(found, "estimate against truth").level == "warning"


def test_a_soup_that_diverged_is_counted_apart(cooked, toy_pool, tmp_path):
    shutil.copytree(cooked, tmp_path / "run")
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    known = ledger.soups()[0].evaluation
    recipe = Recipe.normalized([1, 2, 3, 4, 5, 6])
    identity, as_json = (
        recipe.identity(toy_pool.fingerprints),
        recipe.to_json(toy_pool.member_names, toy_pool.fingerprints),
    )
    number = ledger.ask(1, "search", identity, as_json, known.examples, None)
    ledger.tell(number, replace(known, score=float("nan"), values=None))
    ledger.close()
    found = radin.doctor(toy_pool, run=tmp_path / "run")
    assert (found.run.soups, found.run.diverged) == (12, 1)
    assert the(found, "soups diverged").level == "warning"


def test_spearman_shares_ranks_as_scipy_does():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 15).astype(float), rng.integers(0, 6, 15).astype(float)
        assert spearman(first, second) == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-12)
    assert spearman(np.ones(4), np.arange(4.0)) is None


def test_json_names_members_findings_and_numbers(toy_pool, task, cooked):
    found = radin.doctor(toy_pool, task, cooked, examples=200).to_json()
    json.dumps(found, allow_nan=False)
    assert set(found) == {"findings", "members", "weights", "slice", "run"}
    assert all(set(f) == {"level", "title", "sentence", "advice", "page"} for f in found["findings"])
    assert "findings/one-initialisation" in [f["page"] for f in found["findings"]]
    assert [m["name"] for m in found["members"]] == [f"run-{k}" for k in range(6)]
    assert np.array(found["weights"]["distances"]).shape == (6, 6)
    assert np.diag(found["weights"]["cosines"]) == pytest.approx(np.ones(6))
    assert found["weights"]["batchnorm_layers"] == 1
    assert found["slice"]["examples"] == 200
    assert len(found["slice"]["soups"]["interpolations"]) in (3, 4)
    assert found["run"]["soups"] == 12
    alone = radin.doctor(toy_pool).to_json()
    assert alone["slice"] is None
    assert alone["run"] is None


def test_cosines_are_those_of_the_differences_from_the_mean(healthy, toy_pool):
    kept = [n for n in toy_pool.names if "weight" in n or "bias" in n]
    weights = np.stack([np.concatenate([toy_pool.tensors(k)[n].double().flatten() for n in kept]) for k in range(6)])
    centred = weights - weights.mean(0)
    norms = np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(healthy.spread.cosines, centred @ centred.T / np.outer(norms, norms), atol=1e-9)


def test_what_cannot_be_examined_is_one_clear_error(toy_folder, toy_pool, task, cooked, tmp_path):
    with pytest.raises(RadinError, match="at least 2; got 1"):
        radin.doctor(toy_pool, task, examples=1)
    with pytest.raises(PoolError, match="at least two checkpoints"):
        radin.doctor(toy_folder / "run-0.safetensors")
    with pytest.raises(RunError, match="not a run directory"):
        radin.doctor(toy_pool, run=tmp_path)
    files = sorted(toy_folder.glob("*.safetensors"))
    with pytest.raises(RunError, match=r"another pool \(only in the run: run-5; only in this pool: none\)"):
        radin.doctor(files[:5], run=cooked)
    with pytest.raises(TaskError, match="does not have the architecture"):
        radin.doctor(toy_pool, replace(task, model=lambda: torch.nn.Linear(64, 10)))
    assert load_file(files[0])["0.weight"].shape == (32, 64)

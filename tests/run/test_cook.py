"""The main job on the toy pool, against brute force over every subset."""

import itertools
import json
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import radin
import toy
from radin import Task
from radin.errors import OutputsError, RadinError, RunError, TaskError
from radin.recipe import Recipe
from radin.run.ledger import Ledger


def true_accuracy(pool, subset, rows=toy.VALIDATION):
    """Accuracy of the uniform soup of a subset, BatchNorm re-estimated, in plain torch."""
    members = [pool.tensors(k) for k in subset]
    model = toy.model()
    soup = {}
    for name, first in members[0].items():
        total = sum(m[name].double() for m in members) / len(members)
        soup[name] = total.to(first.dtype) if first.is_floating_point() else first
    model.load_state_dict(soup)
    if len(subset) > 1:
        model[3].p = 0.0
        torch.optim.swa_utils.update_bn([x for x, _ in toy.batches(toy.TRAINING)], model)
    model.eval()
    with torch.no_grad():
        hits = [(model(x).argmax(1) == y) for x, y in toy.batches(rows)]
    return float(torch.cat(hits).double().mean())


@pytest.fixture(scope="module")
def all_subsets(toy_pool):
    return {
        subset: true_accuracy(toy_pool, subset)
        for size in range(1, 7)
        for subset in itertools.combinations(range(6), size)
    }


def test_a_budget_for_all_subsets_finds_the_best_of_brute_force(toy_pool, toy_task, tmp_path, all_subsets):
    result = radin.cook(toy_pool, toy_task, budget=57, out=tmp_path / "run", strategy="paper")
    assert result.passes.soups == 57
    assert result.best.score == pytest.approx(max(all_subsets.values()), abs=1e-12)
    for evaluation in result.evaluations:
        assert evaluation.score == pytest.approx(all_subsets[evaluation.recipe.members], abs=1e-12)


def test_what_is_reported_is_what_the_file_holds(toy_pool, toy_task, tmp_path):
    result = radin.cook(toy_pool, toy_task, budget=5, out=tmp_path / "run", strategy="paper", options={"prior": 0.1})
    path = result.save(tmp_path / "deep" / "soup.safetensors")
    model = toy.model().eval()
    model.load_state_dict(load_file(path))
    with torch.no_grad():
        hits = torch.cat([(model(x).argmax(1) == y) for x, y in toy.batches(toy.VALIDATION)])
        test = torch.cat([(model(x).argmax(1) == y) for x, y in toy.batches(toy.TEST)])
    assert float(hits.double().mean()) == pytest.approx(result.best.score, abs=1e-12)
    assert float(test.double().mean()) == pytest.approx(result.best.splits["test"][0], abs=1e-12)
    p = result.best.score
    assert result.best.stderr == pytest.approx(np.sqrt(p * (1 - p) / 599), rel=1e-9)


def test_the_result_is_never_below_the_best_single(toy_pool, toy_task, tmp_path, all_subsets):
    best_single = max(score for subset, score in all_subsets.items() if len(subset) == 1)
    for strategy in ("adaptive", "paper", "greedy", "random", "uniform", "best", "pruned", "top-k"):
        result = radin.cook(toy_pool, toy_task, budget=2, out=tmp_path / strategy, strategy=strategy)
        assert result.best_single.score == pytest.approx(best_single)
        assert result.best.score >= best_single
        assert result.passes.soups <= 2
        held = load_file(tmp_path / strategy / "soup.safetensors")
        if result.best.recipe.is_single:
            assert result.reasons
            for name, tensor in toy_pool.tensors(result.best.recipe.members[0]).items():
                assert torch.equal(held[name], tensor)


def test_a_larger_budget_goes_on_and_a_finished_run_spends_nothing(toy_pool, toy_task, tmp_path):
    def cook(budget):
        return radin.cook(toy_pool, toy_task, budget=budget, out=tmp_path / "run", strategy="paper")

    first = cook(3)
    more = cook(6)
    again = cook(6)
    straight = radin.cook(toy_pool, toy_task, budget=6, out=tmp_path / "straight", strategy="paper")
    assert [e.recipe for e in more.evaluations][:3] == [e.recipe for e in first.evaluations]
    assert [(e.recipe, e.score) for e in more.evaluations] == [(e.recipe, e.score) for e in straight.evaluations]
    assert again.best == more.best
    assert again.passes.soups == 6
    rows = sqlite3.connect(tmp_path / "run" / "ledger.sqlite").execute(
        "SELECT COUNT(*) FROM questions WHERE told IS NOT NULL AND error IS NULL"
    )
    assert rows.fetchone() == (6,)


def test_the_order_of_the_files_does_not_matter(toy_folder, toy_task, tmp_path):
    files = sorted(toy_folder.glob("*.safetensors"))
    there = radin.cook(files, toy_task, budget=4, out=tmp_path / "there")
    back = radin.cook(files[::-1], toy_task, budget=4, out=tmp_path / "back")

    def contents(result):
        return [(e.recipe.identity(result.fingerprints), e.score) for e in result.evaluations]

    assert contents(there) == contents(back)
    assert there.passes.started == back.passes.started > len(there.evaluations)
    again = radin.cook(files[::-1], toy_task, budget=4, out=tmp_path / "there")
    assert again.passes.soups == there.passes.soups


def test_result_json_says_all(toy_pool, toy_task, tmp_path):
    task = replace(toy_task, shifts={"bright": [(x + 0.3, y) for x, y in toy.batches(toy.TEST)]})
    radin.cook(toy_pool, task, budget=3, out=tmp_path / "run", strategy="paper")
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in ("best", "best_single", "uniform"):
        assert {"recipe", "score", "stderr"} <= set(found[name])
    again = found["passes"].pop("reestimated")
    assert again in (1, 2)
    assert found["passes"] == {"members": 6, "soups": 3, "total": 9 + again, "budget": 3, "started": 3, "failed": 0}
    assert len(found["evaluations"]) == 3
    assert set(found["test"]) == {"best_single", "reestimated", "uniform", "best"}
    assert found["shifts"]["bright"]["best"]["score"] < 1.0
    assert {"outputs", "soups", "search", "total"} <= set(found["seconds"])
    assert found["versions"]["torch"] == torch.__version__
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert Recipe.from_json(recipe["recipe"], toy_pool.fingerprints).size == recipe["size"]


def test_the_gain_is_paired(toy_pool, toy_task, tmp_path):
    result = radin.cook(toy_pool, toy_task, budget=20, out=tmp_path / "run")
    assert result.best.recipe.size > 1
    ledger = Ledger(tmp_path / "run" / "ledger.sqlite")
    best = result.best.recipe.identity(result.fingerprints)
    soup = next(entry.evaluation for entry in ledger.soups() if entry.identity == best)
    kind = "re-estimated" if result.reference.recipe.reestimated else "member"
    single = ledger.get(result.reference.recipe.identity(result.fingerprints), kind, "validation")
    difference = soup.values - single.values
    assert result.gain.difference == pytest.approx(difference.mean())
    assert result.gain.stderr == pytest.approx(difference.std(ddof=1) / np.sqrt(len(difference)))


class TestRefusals:
    @pytest.fixture
    def run(self, toy_pool, toy_task, tmp_path):
        radin.cook(toy_pool, toy_task, budget=1, out=tmp_path / "run")
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        yield tmp_path / "run"
        after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        assert before == after, "a refused run must write nothing"

    def test_another_pool(self, run, toy_folder, toy_task):
        with pytest.raises(RunError, match=r"belongs to another run: the pool \(gone or changed: run-5; new: none\)"):
            radin.cook(sorted(toy_folder.glob("*.safetensors"))[:5], toy_task, budget=2, out=run)

    def test_another_metric(self, run, toy_pool, toy_task):
        with pytest.raises(RunError, match=r"metric .was 'accuracy', now 'nll'"):
            radin.cook(toy_pool, replace(toy_task, metric="nll"), budget=2, out=run)

    def test_other_data(self, run, toy_pool, toy_task):
        task = replace(toy_task, validation=lambda: toy.batches(slice(700, 1250)))
        with pytest.raises(TaskError, match="gave other data than before"):
            radin.cook(toy_pool, task, budget=2, out=run)

    def test_another_model_with_the_same_weights(self, run, toy_pool, toy_task):
        class Scaled(torch.nn.Sequential):
            def forward(self, x):
                return super().forward(x * 2)

        with pytest.raises(RunError, match="run-0 gives other outputs on the first batch"):
            radin.cook(toy_pool, replace(toy_task, model=lambda: Scaled(*toy.model())), budget=2, out=run)

    def test_a_run_in_use(self, run, toy_pool, toy_task):
        from filelock import FileLock

        with FileLock(run / ".lock"), pytest.raises(RunError, match="in use by another radin process"):
            radin.cook(toy_pool, toy_task, budget=2, out=run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": lambda: [(x, y + 5) for x, y in toy.batches(toy.VALIDATION)]}, r"labels out of range.*5\.\.14"),
        ({"validation": lambda: [(x, y.float()) for x, y in toy.batches(toy.VALIDATION)]}, "integer class indices"),
        ({"validation": lambda: toy.batches(slice(0, 0))}, r"validation\(\) gave no batches|no validation examples"),
        (
            {"test": lambda: toy.batches(toy.VALIDATION)},
            r"validation\(\) and test\(\) start with the same 100 examples",
        ),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'; known: accuracy"),
        ({"model": lambda: torch.nn.Linear(64, 10)}, r"model\(\) does not have the architecture of run-0"),
    ],
)
def test_a_task_that_does_not_fit_writes_nothing(toy_pool, toy_task, tmp_path, change, message):
    with pytest.raises(TaskError, match=message):
        radin.cook(toy_pool, replace(toy_task, **change), budget=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shuffled_validation_is_caught_before_anything_runs(toy_pool, toy_task, tmp_path):
    inputs, targets = (torch.cat(parts) for parts in zip(*toy.batches(toy.VALIDATION), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=50, shuffle=True)
    with pytest.raises(TaskError, match="two different first batches when read twice"):
        radin.cook(toy_pool, replace(toy_task, validation=loader), budget=2, out=tmp_path / "run")


def test_a_directory_of_something_else_is_left_alone(toy_pool, toy_task, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not empty and not a radin run \(found thesis\.tex\)"):
        radin.cook(toy_pool, toy_task, budget=2, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_a_killed_start_left_behind_is_taken(toy_pool, toy_task, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".run.json.0123abcd-123-0123abcd.tmp").write_text('{"form')
    assert radin.cook(toy_pool, toy_task, budget=1, out=tmp_path / "run").passes.soups == 1


@pytest.mark.parametrize("budget", [0, -3, 1.5, True])
def test_budgets_that_are_none(toy_pool, toy_task, tmp_path, budget):
    with pytest.raises(RadinError, match=r"the budget, .* must be (at least 1|a whole number); got"):
        radin.cook(toy_pool, toy_task, budget=budget, out=tmp_path / "run")


def test_a_metric_where_lower_is_better_and_one_of_the_users(toy_pool, toy_task, tmp_path):
    def error_rate(outputs, targets):
        return (outputs.argmax(1) != targets).double().mean()

    lower = radin.cook(toy_pool, replace(toy_task, metric="nll"), budget=4, out=tmp_path / "nll")
    assert lower.best.score <= lower.best_single.score
    targets = torch.cat([y for _, y in toy.batches(toy.VALIDATION)])
    losses = [float(torch.nn.functional.cross_entropy(member_outputs(toy_pool, k), targets)) for k in range(6)]
    assert lower.best_single.score == pytest.approx(min(losses), rel=1e-5)
    own = radin.cook(
        toy_pool,
        replace(toy_task, metric=error_rate, higher_is_better=False),
        budget=4,
        out=tmp_path / "own",
        strategy="paper",
    )
    accuracy = radin.cook(toy_pool, toy_task, budget=4, out=tmp_path / "accuracy", strategy="paper")
    assert own.best.score == pytest.approx(1 - accuracy.best.score)
    assert own.metric == "error_rate"


def member_outputs(pool, k):
    model = toy.model().eval()
    model.load_state_dict(pool.tensors(k))
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in toy.batches(toy.VALIDATION)])


def test_outputs_need_not_be_kept(toy_pool, toy_folder, toy_task, tmp_path):
    how = {"strategy": "paper", "uniform": True}
    kept = radin.cook(toy_pool, toy_task, budget=5, out=tmp_path / "kept", **how)
    streamed = radin.cook(toy_pool, toy_task, budget=3, out=tmp_path / "streamed", keep_outputs=False, **how)
    files = sorted(toy_folder.glob("*.safetensors"))[::-1]
    streamed = radin.cook(files, toy_task, budget=5, out=tmp_path / "streamed", keep_outputs=False, **how)

    def essence(result):
        return {e.recipe.identity(result.fingerprints): (e.score, e.estimate) for e in result.evaluations}

    assert essence(streamed) == essence(kept)
    assert [p.name for p in (tmp_path / "streamed" / "outputs").iterdir()] == ["compiled.safetensors"]
    assert streamed.ensemble.score == pytest.approx(kept.ensemble.score)
    assert streamed.ensemble.stderr == pytest.approx(kept.ensemble.stderr)
    with pytest.raises(RunError, match="outputs kept"):
        radin.cook(toy_pool, toy_task, budget=5, out=tmp_path / "streamed")
    with pytest.raises(RadinError, match="metric 'nll' needs them"):
        radin.cook(toy_pool, replace(toy_task, metric="nll"), budget=5, out=tmp_path / "nll", keep_outputs=False)
    with pytest.raises(RadinError, match="all 6 members must be in memory at once"):
        radin.cook(toy_pool, toy_task, budget=5, out=tmp_path / "few", keep_outputs=False, members_at_once=3)


def test_runs_may_share_outputs_so_that_new_members_cost_one_pass_each(toy_folder, toy_task, tmp_path):
    files = sorted(toy_folder.glob("*.safetensors"))
    shared = tmp_path / "outputs"
    radin.cook(files[:5], toy_task, budget=3, out=tmp_path / "five", outputs=shared)
    before = {p.name: p.stat().st_mtime_ns for p in shared.iterdir()}
    six = radin.cook(files, toy_task, budget=5, out=tmp_path / "six", outputs=shared)
    kept = [p.name for p in shared.iterdir() if before.get(p.name) == p.stat().st_mtime_ns]
    assert len([name for name in kept if len(name) > 40]) == 5  # the five members' files were not made again
    alone = radin.cook(files, toy_task, budget=5, out=tmp_path / "alone")
    assert [(e.recipe, e.score, e.estimate) for e in six.evaluations] == [
        (e.recipe, e.score, e.estimate) for e in alone.evaluations
    ]
    with pytest.raises(OutputsError, match="was stored as float32, now float16 is asked"):
        radin.cook(files, toy_task, budget=1, out=tmp_path / "half", outputs=shared, outputs_dtype="float16")


def test_mapping_batches_and_models_that_return_logits_give_the_same_run(toy_pool, toy_task, tmp_path):
    class ByKeyword(torch.nn.Sequential):
        def forward(self, pixels):
            return SimpleNamespace(logits=super().forward(pixels), loss=None)

    def mapped(rows):
        return lambda: [{"pixels": x, "labels": y} for x, y in toy.batches(rows)]

    task = Task(
        model=lambda: ByKeyword(*toy.model()),
        validation=mapped(toy.VALIDATION),
        test=mapped(toy.TEST),
        calibration=mapped(toy.TRAINING),
    )
    ours = radin.cook(toy_pool, task, budget=3, out=tmp_path / "mapped")
    plain = radin.cook(toy_pool, toy_task, budget=3, out=tmp_path / "plain")
    assert [(e.recipe, e.score) for e in ours.evaluations] == [(e.recipe, e.score) for e in plain.evaluations]
    assert ours.best.splits == plain.best.splits


def test_regression_with_a_score_where_lower_is_better(tmp_path):
    """Linear models: the soup gives the average of the outputs exactly, so every estimate is true."""
    torch.manual_seed(0)
    inputs, truth = torch.randn(300, 5), torch.randn(5, 1)
    targets = inputs @ truth + 0.1 * torch.randn(300, 1)
    for k in range(5):
        model = torch.nn.Linear(5, 1)
        with torch.no_grad():
            model.weight.copy_(truth.T + 0.3 * torch.randn(1, 5))
        torch.save(model.state_dict(), tmp_path / f"{k}.pt")
    task = Task(model=lambda: torch.nn.Linear(5, 1), validation=[(inputs, targets)], metric="mse")
    result = radin.cook(tmp_path, task, budget=6, out=tmp_path / "run")
    assert result.best.score < result.best_single.score
    for evaluation in result.evaluations:
        assert evaluation.score == pytest.approx(evaluation.estimate, rel=1e-5)
    held = load_file(tmp_path / "run" / "soup.safetensors")
    by_hand = torch.nn.functional.mse_loss(inputs @ held["weight"].T + held["bias"], targets)
    assert float(by_hand) == pytest.approx(result.best.score, rel=1e-5)

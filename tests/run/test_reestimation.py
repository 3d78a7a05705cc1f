"""A soup's BatchNorm statistics are estimated again and a checkpoint's are not: how much of a gain is that alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import radin
import toy
from radin import Pool, Recipe
from radin.engine.local import LocalEngine
from radin.errors import RadinError
from radin.report.tables import closing_rows, closing_sentences
from radin.run.average import average_pool
from radin.run.ledger import Ledger
from radin.run.rows import REESTIMATED
from radin.search.strategies import base
from radin.stats.paired import paired_difference
from radin.stats.split import split_halves
from radin.weights import read_metadata, read_recipe

MEMBERS = 5


def build(folder, seed=4, rate=5e-3):
    """Members that hardly differ; their statistics are of the last batch of 4, as a momentum near 1 leaves them."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    start = toy.model()
    toy._train(start, 0.1, 12, 0, toy.TRAINING)
    inputs, targets = (torch.cat(parts) for parts in zip(*toy.batches(toy.TRAINING), strict=True))
    for k in range(MEMBERS):
        torch.manual_seed(100 * seed + k)
        net = toy.model()
        net.load_state_dict(start.state_dict())
        net[1].momentum = 1.0
        optimizer = torch.optim.SGD(net.parameters(), lr=rate)
        net.train()
        for picked in torch.randperm(len(inputs))[:240].split(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[picked]), targets[picked]).backward()
            optimizer.step()
        save_file(net.state_dict(), folder / f"run-{k}.safetensors")
    return Pool.open(sorted(folder.glob("run-*.safetensors")))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return build(tmp_path_factory.mktemp("noisy"))


def right(tensors, *, again, rows=toy.VALIDATION):
    """Right answers, (M,), in plain torch; ``again``: with the statistics of all training images."""
    net = toy.model()
    net.load_state_dict(tensors)
    if again:
        net[3].p = 0.0
        torch.optim.swa_utils.update_bn([x for x, _ in toy.batches(toy.TRAINING)], net)
    net.eval()
    with torch.no_grad():
        return torch.cat([net(x).argmax(1) == y for x, y in toy.batches(rows)]).double().numpy()


def words(result):
    return " ".join(line for line, _ in closing_sentences(result))


def kept(out, kind):
    ledger = Ledger(out / "ledger.sqlite", read_only=True)
    found = ledger.entries(kind, "validation")
    ledger.close()
    return found


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_gain_that_is_only_re_estimation_is_not_claimed_for_averaging(pool, toy_task, tmp_path, budget):
    """Soups of these lead the best single as it is by 12 points, p = 1e-17; so does any member, re-estimated."""
    result = radin.cook(pool, toy_task, budget=budget, out=tmp_path / "run")
    own = [right(pool.tensors(k), again=False) for k in range(MEMBERS)]
    again = [right(pool.tensors(k), again=True) for k in range(MEMBERS)]
    top = int(np.argmax([row.mean() for row in own]))
    single = result.best_single.recipe.members[0]
    assert single == top
    assert min(row.mean() for row in again) - own[top].mean() > 0.1
    assert result.reestimated.score == pytest.approx(again[result.reestimated.recipe.members[0]].mean(), abs=1e-12)
    assert result.reestimated.score >= again[top].mean()
    assert result.reference is result.reestimated
    best = max(e.score for e in (*result.evaluations, result.reestimated))
    assert result.best.score == best
    assert result.gain.difference == pytest.approx(max(best - result.reestimated.score, 0.0), abs=1e-12)
    assert result.paired is None or result.paired.inside_noise
    assert result.reestimation == paired_difference(again[result.reestimated.recipe.members[0]], own[top], True)
    assert not any("gain over the best single on" in sentence for sentence in result.confidence)
    assert "averaging" in words(result)
    assert result.passes.soups <= budget + 1e-9
    assert 1 <= result.passes.reestimated == len(kept(tmp_path / "run", REESTIMATED)) <= 2
    assert result.passes.total == pytest.approx(MEMBERS + result.passes.reestimated + result.passes.soups)


def test_where_a_member_re_estimated_is_best_it_is_the_result(pool, toy_task, tmp_path):
    result = radin.cook(pool, toy_task, budget=1, out=tmp_path / "run")
    recipe = result.best.recipe
    assert (recipe.size, recipe.reestimated, recipe.is_single) == (1, True, False)
    assert recipe != Recipe.single(recipe.members[0], MEMBERS)
    assert recipe.identity(pool.fingerprints) != Recipe.single(recipe.members[0], MEMBERS).identity(pool.fingerprints)
    held = load_file(result.soup)
    own = pool.tensors(recipe.members[0])
    changed = [name for name in own if not torch.equal(held[name], own[name])]
    assert set(changed) >= {"1.running_mean", "1.running_var"}
    assert set(changed) <= {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert right(held, again=False).mean() == pytest.approx(result.best.score, abs=1e-12)
    assert right(held, again=False, rows=toy.TEST).mean() == pytest.approx(result.best.splits["test"][0], abs=1e-12)
    assert read_recipe(result.soup)["reestimated"] is True
    assert read_metadata(result.soup)["batchnorm"] == "re-estimated"
    _, _, rows = closing_rows(result)
    assert [row[0] for row in rows][:4] == [
        "best single",
        "best single re-estimated",
        "uniform soup",
        "chosen: the single re-estimated",
    ]
    name = pool[recipe.members[0]].name
    assert f"no soup beat {name} with its BatchNorm statistics re-estimated: the result is that member" in words(result)
    assert "gain of estimating its BatchNorm statistics again, over the best single as it is: +0.1" in words(result)
    assert result.gain.difference == 0
    assert result.reasons is not None
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert found["best"]["recipe"]["reestimated"] is True
    assert found["gain"]["over"] == result.reestimated.name == f"best single re-estimated ({name})"
    assert set(found["test"]) == {"best_single", "reestimated", "uniform", "best"}
    again = radin.Result.load(tmp_path / "run")
    assert again.best == result.best
    assert again.to_json() == result.to_json()
    assert "BatchNorm statistics re-estimated" in str(recipe)


def test_what_averaging_gives_beyond_it_is_the_gain(toy_pool, toy_task, tmp_path):
    result = radin.cook(toy_pool, toy_task, budget=10, out=tmp_path / "run", strategy="greedy")
    soup = result.best.recipe
    assert soup.size > 1
    top = right(toy_pool.tensors(result.best_single.recipe.members[0]), again=False)
    again = right(toy_pool.tensors(result.reestimated.recipe.members[0]), again=True)
    to_beat = again if again.mean() > top.mean() else top
    mixed = right(radin.average(toy_pool, soup), again=True)
    assert result.paired == paired_difference(mixed, to_beat, True)
    assert result.gain.difference == pytest.approx(mixed.mean() - max(top.mean(), again.mean()), abs=1e-12)
    share = again.mean() - top.mean()
    origin = next(text for text in result.confidence if "estimating BatchNorm statistics again" in text)
    assert f"{share:+.4f}" in origin
    if share > 0:
        assert f"and {mixed.mean() - again.mean():+.4f} from averaging" in origin
    assert result.optimism.candidates == 6 + result.passes.reestimated + result.passes.started


def test_the_main_member_of_the_best_soup_is_looked_at_too(toy_task, tmp_path, monkeypatch):
    """The best single as it is need not be the best re-estimated: statistics may hide how good another one is."""

    def mostly_the_second(problem):
        """95 % of the second best member."""
        yield np.array([0.05, 0.95])

    strategy = base.Strategy("mostly", "", mostly_the_second, ())
    monkeypatch.setitem(base._STRATEGIES, "mostly", strategy)
    torch.manual_seed(0)
    net = toy.model()
    toy._train(net, 0.05, 2, 0, slice(0, 300))
    save_file(net.state_dict(), tmp_path / "weak.safetensors")
    toy._train(net, 0.1, 12, 0, toy.TRAINING)
    net[1].momentum = 1.0
    (first, _), *_ = toy.batches(toy.TRAINING, 3)
    net.train()(first)
    save_file(net.state_dict(), tmp_path / "strong.safetensors")
    pool = Pool.open([tmp_path / "weak.safetensors", tmp_path / "strong.safetensors"])
    weak, strong = pool.member_names.index("weak"), pool.member_names.index("strong")
    result = radin.cook(pool, toy_task, budget=1, out=tmp_path / "run", strategy="mostly")
    assert result.best_single.recipe == Recipe.single(weak, 2)
    (soup,) = result.evaluations
    again = [right(pool.tensors(k), again=True) for k in (weak, strong)]
    own = right(pool.tensors(weak), again=False)
    assert soup.score > max(own.mean(), again[0].mean()) + 0.03  # so a gain over both that are known at the start
    assert [e.recipe["members"][0]["name"] for e in kept(tmp_path / "run", REESTIMATED)] == ["weak", "strong"]
    assert result.reestimated.recipe == Recipe.single(strong, 2, reestimated=True)
    assert result.reestimated.score == pytest.approx(again[1].mean(), abs=1e-12)
    assert result.paired is None or result.paired.inside_noise


@pytest.mark.parametrize("metric", ["accuracy", "nll", "macro_f1"])
def test_interrupted_after_any_answer_it_ends_the_same(pool, toy_task, tmp_path, monkeypatch, metric):
    task = replace(toy_task, metric=metric)
    how = {"budget": 2, "strategy": "greedy"}
    straight = radin.cook(pool, task, out=tmp_path / "straight", **how)
    assert straight.reestimated is not None

    class Stopped(Exception):
        pass

    asked = []
    wait = LocalEngine.wait
    sessions = 0
    while sessions < 12:
        sessions += 1
        with monkeypatch.context() as patch:
            before = len(asked)

            def stopping(self, timeout=None, before=before):
                if len(asked) > before:
                    raise Stopped
                found = wait(self, timeout)
                asked.extend((q.recipe, q.split) for q, _ in found)
                return found

            patch.setattr(LocalEngine, "wait", stopping)
            try:
                resumed = radin.cook(pool, task, out=tmp_path / "run", **how)
                break
            except Stopped:
                continue
    assert sessions > 3
    assert len(asked) == len(set(asked))
    assert resumed.best == replace(straight.best, seconds=resumed.best.seconds)
    assert (resumed.reestimated.recipe, resumed.gain) == (straight.reestimated.recipe, straight.gain)
    assert resumed.confidence == straight.confidence
    assert resumed.passes == straight.passes
    ours, theirs = load_file(resumed.soup), load_file(straight.soup)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_on_halves_the_half_that_chooses_decides(pool, toy_task, tmp_path):
    result = radin.cook(pool, toy_task, budget=3, out=tmp_path / "run", choose_on_half=True)
    labels = torch.cat([y for _, y in toy.batches(toy.VALIDATION)]).numpy()
    _, choose = split_halves(labels, 0)
    member = result.reestimated.recipe.members[0]
    assert result.reestimated.score == right(pool.tensors(member), again=True)[choose].mean()
    own = [right(pool.tensors(k), again=False)[choose].mean() for k in range(MEMBERS)]
    assert result.best_single.score == max(own)
    assert result.reference is result.reestimated
    assert result.best.score >= result.reestimated.score
    assert result.paired is None or result.paired.inside_noise


def test_without_calibration_or_without_batchnorm_nothing_is_re_estimated(toy_pool, toy_task, tmp_path):
    plain = radin.cook(toy_pool, replace(toy_task, calibration=None), budget=1, out=tmp_path / "run")
    assert plain.reestimated is plain.reestimation is None
    assert plain.passes.reestimated == 0
    assert [row[0] for row in closing_rows(plain)[2]][:2] == ["best single", "uniform soup"]
    assert "for members re-estimated" not in words(plain)


def test_workers_give_the_same(toy_folder, tmp_path):
    task = toy_folder / "task.py"
    how = {"budget": 2, "strategy": "paper", "device": "cpu"}
    one = radin.cook(toy_folder, task, out=tmp_path / "one", **how)
    two = radin.cook(toy_folder, task, out=tmp_path / "two", workers=2, **how)
    assert two.reestimated.score == one.reestimated.score
    assert (two.best.recipe, two.gain) == (one.best.recipe, one.gain)


def test_only_a_member_alone_can_be_re_estimated():
    with pytest.raises(RadinError, match="only a member alone can be marked as re-estimated; this recipe has 2"):
        Recipe((0.5, 0.5), True)
    single = Recipe.single(1, 3, reestimated=True)
    prints = ("a", "b", "c")
    assert Recipe.from_json(single.to_json("xyz", prints), prints) == single
    assert single.permuted((1, 0, 2)) == Recipe.single(0, 3, reestimated=True)
    assert "reestimated" not in Recipe.single(1, 3).to_json("xyz", prints)
    assert "BatchNorm statistics re-estimated" in single._repr_html_()


def test_doctor_compares_a_run_with_the_same_single(pool, toy_task, tmp_path):
    result = radin.cook(pool, toy_task, budget=3, out=tmp_path / "run", strategy="greedy")
    found = radin.doctor(pool, run=tmp_path / "run").run
    assert found.best_single == pytest.approx(result.reference.score)
    soups = [e.score for e in result.evaluations]
    assert found.gain == pytest.approx(max(soups) - result.reference.score, abs=1e-12)


def test_average_warns_of_statistics_that_it_cannot_estimate_again(toy_pool, tmp_path):
    how = {"integers_from": None}
    found = average_pool(toy_pool, (), None, tmp_path / "all.pt", **how)
    (warning,) = [note for note in found.notes if note.startswith("warning")]
    assert "the running statistics of 1 BatchNorm layer (1.running_mean, ...) were averaged like all else" in warning
    assert "torch.optim.swa_utils.update_bn" in warning
    one = average_pool(toy_pool, ["1,0,0,0,0,0"], None, tmp_path / "one.pt", **how)
    assert one.notes == ()
    again = Recipe.single(2, 6, reestimated=True)
    (tmp_path / "recipe.json").write_text(json.dumps(again.to_json(toy_pool.member_names, toy_pool.fingerprints)))
    other = average_pool(toy_pool, (), tmp_path / "recipe.json", tmp_path / "other.pt", **how)
    assert "run-2 with those it has" in other.notes[0]
    assert other.recipe == Recipe.single(2, 6)
    assert "reestimated" not in read_recipe(tmp_path / "other.pt")
    for k in range(2):
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / f"plain-{k}.pt")
    plain = Pool.open([tmp_path / "plain-0.pt", tmp_path / "plain-1.pt"])
    assert average_pool(plain, (), None, tmp_path / "plain.pt", **how).notes == ()


def test_average_from_the_command_line_says_so_too(toy_folder, tmp_path, radin_command):
    done = radin_command("average", toy_folder, "-o", tmp_path / "soup.pt")
    assert done.returncode == 0
    assert "warning: the running statistics of 1 BatchNorm layer" in done.stdout

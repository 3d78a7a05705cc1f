"""The paper's figures from a run: the numbers behind each against plain computations, and the files."""

import json
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats
import torch

import toy
from radin import Recipe, RunError, cook
from radin.data.task import Task
from radin.engine.device import Device
from radin.engine.evaluate import Evaluator
from radin.errors import RadinError
from radin.report import figures
from radin.report.figures import Unavailable, plain
from radin.report.figures.drawing import chart
from radin.report.figures.files import page
from radin.run import mixing as passes
from radin.run.further import evaluate_further
from radin.run.ledger import Ledger
from radin.run.record import RunRecord
from radin.run.replay import METHODS, own_curve, replay
from radin.stats.ranks import mann_whitney, spearman
from radin.weights import Pool, average


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run over the toy pool, and beside it all that figures want, in two sessions, with test."""
    place = tmp_path_factory.mktemp("figures")
    toy.build(place / "pool")
    cook(sorted((place / "pool").glob("*.safetensors")), place / "pool" / "task.py", budget=3, out=place / "run")
    shutil.copytree(place / "run", place / "untouched")
    first = evaluate_further(place / "run", place / "pool" / "task.py", 40)
    second = evaluate_further(place / "run", place / "pool" / "task.py", 200, test=True)
    assert (first.passes, first.complete, second.complete) == (40, False, True)
    assert second.tests > 3
    return place


@pytest.fixture(scope="module")
def record(folder):
    return RunRecord.read(folder / "run")


def outputs_of(recipe, folder):
    """A soup's outputs and its score, computed without the run: average, BatchNorm by torch, one forward."""
    pool = Pool.open(sorted((folder / "pool").glob("*.safetensors")))
    net = toy.model()
    net.load_state_dict(average(pool, recipe))
    if not recipe.is_single:
        norm = net[1]
        norm.reset_running_stats()
        norm.momentum = None
        net.train()
        net[3].eval()
        with torch.no_grad():
            for inputs, _ in toy.batches(toy.TRAINING):
                net(inputs)
    net.eval()
    inputs, targets = (torch.cat(parts) for parts in zip(*toy.batches(toy.VALIDATION), strict=True))
    with torch.no_grad():
        found = net(inputs).double().numpy()
    return found, float((found.argmax(1) == targets.numpy()).mean())


def member_outputs(folder):
    singles = [outputs_of(Recipe.single(k, 6), folder)[0] for k in range(6)]
    targets = torch.cat([t for _, t in toy.batches(toy.VALIDATION)]).numpy()
    return np.array(singles), targets


def test_truths_are_those_of_the_soups_themselves(folder, record):
    own = {soup.recipe for soup in record.own}
    assert len(own) >= 1
    assert len(record.soups) > 40
    for soup in record.soups[:: len(record.soups) // 6]:
        assert soup.found.score == pytest.approx(outputs_of(soup.recipe, folder)[1], abs=1e-12)
        assert soup.further == (soup.recipe not in own)


def test_further_passes_cost_the_run_nothing_and_are_not_made_twice(folder, record):
    for name in ("ledger.sqlite", "result.json", "recipe.json", "soup.safetensors"):
        assert (folder / "run" / name).read_bytes() == (folder / "untouched" / name).read_bytes(), name
    more = evaluate_further(folder / "run", folder / "pool" / "task.py", 5)
    assert (more.passes, more.tests, more.complete) == (0, 0, True)
    # every candidate, and the line and the simplex
    wanted = {*record.candidates, *passes.line(record), *passes.simplex(record)}
    assert {s.recipe for s in record.soups if s.further} == wanted - {s.recipe for s in record.own}


def test_estimates_and_their_correlation(folder, record):
    found = figures.estimates(record)
    outputs, targets = member_outputs(folder)
    truths = {soup.recipe: soup.found.score for soup in record.soups}
    guesses = {r: float((np.tensordot(r.weights, outputs, 1).argmax(1) == targets).mean()) for r in truths}
    shown = [r for r in truths if r in {s.recipe for s in record.own} or r.is_uniform]
    assert len(found.soups) == len(shown)
    np.testing.assert_allclose(
        sorted((s.estimate, s.truth, s.size) for s in found.soups),
        sorted((guesses[r], truths[r], r.size) for r in shown),
        atol=1e-12,
    )
    rho = scipy.stats.spearmanr([guesses[r] for r in shown], [truths[r] for r in shown]).statistic
    assert found.correlation == pytest.approx(rho, abs=1e-12)
    assert found.bias == pytest.approx(np.mean([truths[r] - guesses[r] for r in shown]), abs=1e-12)


def test_candidates_are_the_papers_in_order_of_their_estimates(record):
    found = figures.ranked(record)
    # all subsets of 2 to 5 of 6 members, and the uniform soup
    assert (len(record.candidates), found.drawn) == (57, 57)
    assert len({frozenset(recipe.members) for recipe in record.candidates}) == 57
    assert [s.rank for s in found.candidates] == list(range(1, len(found.candidates) + 1))
    scores = [s.estimate for s in found.candidates]
    assert scores == sorted(scores, reverse=True)
    origins = [s.origin for s in found.candidates]
    assert origins.count("the run") == sum(s.recipe.size > 1 for s in record.own)
    assert (
        found.evaluated
        == sum(s.truth is not None for s in found.candidates)
        == len(origins) - origins.count("not evaluated")
    )


def test_greedy_is_replayed_as_it_would_have_run(folder, record):
    singles = [outputs_of(Recipe.single(k, 6), folder)[1] for k in range(6)]
    assert singles == pytest.approx([answer.score for answer in record.singles], abs=1e-12)
    chosen, best = [record.order[0]], max(singles)
    standing = []
    for k in record.order[1:]:
        score = outputs_of(Recipe.uniform([*chosen, k], 6), folder)[1]
        if score > best:
            chosen, best = [*chosen, k], score
        standing.append(best)
    curve = replay(record, METHODS[1], record.scores, 25)
    floor = record.reference[1].score
    assert [curve.at(b).score for b in range(1, 6)] == pytest.approx([max(s, floor) for s in standing], abs=1e-12)
    assert curve.missing is None
    assert curve.at(1000).score == curve.at(5).score


def test_the_runs_own_course_is_its_ledgers(record):
    curve = own_curve(record)
    best = max([record.reference[1].score, *(s.found.score for s in record.own)])
    assert curve.standings[0].score == record.reference[1].score
    assert curve.at(3).score == best
    assert curve.at(4) is None
    assert [s.passes for s in curve.standings] == sorted(s.passes for s in curve.standings)
    assert curve.standings[-1].passes <= 3


def test_the_curves_of_figure_4(record):
    found = figures.curves(record)
    assert [course.name for course in found.courses] == ["this run (adaptive)", "uniform", "greedy", "top-k"]
    uniform = found.courses[1]
    score = record.scores[Recipe.uniform(range(6), 6)].score
    assert uniform.steps[-1].score == max(score, record.reference[1].score)
    assert all(course.finished and not course.lacking for course in found.courses[1:])
    assert found.most == 3


def test_table_1(record):
    found = figures.table(record)
    assert [row.name for row in found.rows] == [*(m.name for m in METHODS), "this run (adaptive)"]
    rows = {row.name: row.cells for row in found.rows}
    ranked = sorted(
        record.candidates, key=lambda r: -record.estimates([r])[0]
    )  # the paper's procedure: the best estimate first
    first = [record.scores[r].score for r in ranked if record.estimates([r])[0] == record.estimates([ranked[0]])[0]]
    assert rows["paper, lambda 0"][0].validation in [max(s, record.reference[1].score) for s in first]
    lone = max(record.scores[Recipe.uniform(range(6), 6)].score, record.reference[1].score)
    assert rows["paper, lambda 1"][0].validation == lone  # size first: the uniform soup
    assert rows["this run (adaptive)"][-1] is None
    assert found.tested
    assert all(cell.test is not None for cells in rows.values() for cell in cells if cell is not None)
    text = found.markdown()
    assert text.count("\n| greedy | ") == 2
    assert f"| {rows['greedy'][0].validation:.4f} ± {rows['greedy'][0].stderr:.4f} |" in text
    assert text.splitlines()[0] == "| validation | B = 1 | B = 2 | B = 4 | B = 8 | B = 16 | B = 25 |"


def test_test_scores_are_those_of_the_task(folder, record):
    pool = Pool.open(sorted((folder / "pool").glob("*.safetensors")))
    task = Task.load(folder / "pool" / "task.py")
    evaluator = Evaluator(task, Device.create("cpu"), task.get_metric())
    recipe = next(r for r in record.tests if r.size > 1)
    model, _ = evaluator.prepare(average(pool, recipe), "soup", calibrate=True)
    assert record.tests[recipe].score == evaluator.score(model, "test", "soup").score


def test_large_against_small_soups(record):
    found = figures.halves(record)
    assert (found.split, found.random) == (3, True)
    drawn = [r for r in record.candidates if r.size < 6 and r in record.scores]
    large = [record.scores[r].score for r in drawn if r.size >= 3]
    small = [record.scores[r].score for r in drawn if r.size < 3]
    assert (sorted(large), sorted(small)) == (
        sorted(s.score for s in found.large),
        sorted(s.score for s in found.small),
    )
    expected = scipy.stats.mannwhitneyu(large, small, method="asymptotic")
    assert found.test.statistic == expected.statistic
    assert found.test.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.test.larger == pytest.approx(expected.statistic / (len(large) * len(small)))


def test_score_by_size(record):
    found = figures.sizes(record)
    by_size = {}
    for soup in found.soups:
        by_size.setdefault(soup.size, []).append(soup.score)
    assert [at.size for at in found.means] == sorted(by_size)
    for at in found.means:
        assert (at.count, at.mean) == (len(by_size[at.size]), pytest.approx(np.mean(by_size[at.size])))
        if at.count > 1:
            assert at.stderr == pytest.approx(scipy.stats.sem(by_size[at.size]))


def test_the_gap_between_averaged_outputs_and_soup(folder, record):
    found = figures.mixing(record)
    assert (len(found.line), len(found.simplex), found.reestimated) == (11, 25, True)
    best = record.order[:3]
    again = {k: outputs_of(Recipe.single(k, 6, reestimated=True), folder) for k in best}
    assert found.ends == pytest.approx([again[k][1] for k in best], abs=1e-12)
    for point in (found.line[3], found.simplex[10]):
        members = best[: len(point.ratios)]
        weights = np.zeros(6)
        weights[list(members)] = point.ratios
        outputs, score = outputs_of(Recipe(tuple(weights)), folder)
        together = sum(p * again[k][0] for p, k in zip(point.ratios, members, strict=True))
        assert point.apart == pytest.approx(np.sqrt(np.mean((together - outputs) ** 2)), rel=1e-4)
        targets = torch.cat([t for _, t in toy.batches(toy.VALIDATION)]).numpy()
        averaged = float((together.argmax(1) == targets).mean())
        assert (point.soup, point.averaged) == pytest.approx((score, averaged), abs=1e-12)
        assert point.gap == pytest.approx(averaged - score, abs=1e-12)
    # on a line, second order is one constant times p (1 - p)
    constants = [point.second_order / (point.ratios[0] * point.ratios[1]) for point in found.line]
    assert constants == pytest.approx([constants[0]] * 11)
    shape = np.array([p.ratios[0] * p.ratios[1] for p in found.line])
    apart = np.array([p.apart for p in found.line])
    assert found.line_fit.first_order == pytest.approx(np.sqrt((apart**2).mean()))
    assert found.line_fit.second_order == pytest.approx(np.sqrt(((apart - constants[0] * shape) ** 2).mean()))
    assert 0.5 < found.line_fit.explained <= 1


def test_second_order_is_found_exactly_where_it_holds():
    """Outputs that differ by sum p_i p_j h_ij of known h: all distances are given back."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(3, 40))
    steps = [(i, j, 6 - i - j) for i in range(7) for j in range(7 - i) if max(i, j, 6 - i - j) < 6]
    recipes = [Recipe(tuple(s / 6 for s in step)) for step in steps]
    pairs = [(0, 1), (0, 2), (1, 2)]
    apart = {
        r: (
            None,
            float(
                np.sqrt(np.mean(sum(r.weights[i] * r.weights[j] * v for (i, j), v in zip(pairs, h, strict=True)) ** 2))
            ),
        )
        for r in recipes
    }
    record = type("Known", (), {"mixed": apart})()
    from radin.report.figures.mixed import second_order

    assert second_order(record, recipes, (0, 1, 2)) == pytest.approx([apart[r][1] for r in recipes], rel=1e-9)


def test_the_grid_is_the_line_and_the_simplex(record):
    line, simplex = passes.line(record), passes.simplex(record)
    best, second, third = record.order[:3]
    assert [recipe.weights[best] for recipe in line] == pytest.approx([step / 12 for step in range(1, 12)])
    assert all(set(recipe.members) == {best, second} for recipe in line)
    assert len(set(simplex)) == 25
    assert sum(recipe.size == 3 for recipe in simplex) == 10
    assert {third} < {k for recipe in simplex for k in recipe.members}
    assert len(set(line) & set(simplex)) == 5


@pytest.mark.parametrize(("first", "second"), [(5, 9), (8, 8), (20, 30), (1, 3)])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_mann_whitney_is_scipys(first, second, step):
    """``step``: the grid that numbers are rounded to, so that some tie."""
    rng = np.random.default_rng(first * second)
    one, other = rng.normal(0.4, 1, first), rng.normal(0, 1, second)
    if step:
        one, other = np.round(one / step) * step, np.round(other / step) * step
    expected = scipy.stats.mannwhitneyu(one, other)
    found = mann_whitney(one, other)
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)
    assert mann_whitney(one, []) is None


def test_spearman_of_constants_is_none():
    assert spearman(np.ones(3), np.arange(3.0)) is None


# -- files


@pytest.mark.parametrize(("form", "head"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("json", b"{"), ("html", b"<!doc")])
def test_every_figure_is_written(form, head, record, tmp_path):
    names = figures.FIGURES if form == "svg" else ("2", "4")  # rasters take a second each
    for name in names:
        path = figures.write(figures.FIGURES[name](record), tmp_path, form)
        assert path.name.startswith(f"figure-{name}-")
        assert path.read_bytes().startswith(head)
    assert len(list(tmp_path.iterdir())) == len(names)


def test_a_picture_says_what_it_shows(record, tmp_path):
    found = figures.estimates(record)
    text = figures.write(found, tmp_path, "svg").read_text()
    assert f"rank correlation {found.correlation:.2f}" in text
    assert "estimate: accuracy of averaged outputs" in text
    assert "truth: accuracy of the soup" in text
    assert ">members<" in text


def test_another_format_is_refused(record, tmp_path):
    with pytest.raises(RadinError, match="figures are written as png, svg, html, json; got 'gif'"):
        figures.write(figures.estimates(record), tmp_path, "gif")


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_names_do_nothing(record):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m'+alert(1)+'"
    about = replace(figures.mixing(record).about, run=evil, metric=evil)
    drawn = replace(figures.mixing(record), about=about, names=(evil, "datum.x|${}", "c"))
    shown = page(chart(drawn), evil)
    scripts = [attrs for tag, attrs in Elements(shown).found if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "vega-lite"}]
    assert not [tag for tag, _ in Elements(shown).found if tag == "img"]
    assert "\x1b" not in shown  # nor any expression in which the escape would be read again
    data = shown.split('id="vega-lite">')[1].split("</script>")[0]
    assert json.loads(data)["title"]["text"].startswith("Averaged outputs against the soup")
    table = figures.table(record)
    rows = (*table.rows[:1], replace(table.rows[1], name="a | b"))
    assert "| a \\| b |" in replace(table, rows=rows).markdown()


def test_what_is_missing_is_one_sentence_with_the_command(record, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "altair":
            raise ImportError("No module named 'altair'", name="altair")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RadinError, match=r"altair is missing\): pip install 'radin\[figures\]'"):
        figures.write(figures.estimates(record), tmp_path, "svg")
    assert not list(tmp_path.iterdir())


def test_values_are_plain_json(record):
    for make in (*figures.FIGURES.values(), figures.table):
        json.dumps(plain(make(record)), allow_nan=False)


# -- runs of other kinds


def test_an_unfinished_run_works(folder, tmp_path):
    shutil.copytree(folder / "untouched", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    record = RunRecord.read(tmp_path / "run")
    assert not record.finished
    assert isinstance(figures.mixing(record), Unavailable)
    curves = figures.curves(record)
    assert not curves.about.finished
    assert curves.courses[0].ends <= 3
    assert "the run has not finished" in json.dumps(chart(curves))
    assert figures.table(record).rows[-1].cells[0] is not None


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        RunRecord.read(tmp_path)


def test_other_checkpoints_are_refused(folder, tmp_path):
    shutil.copytree(folder / "untouched", tmp_path / "run")
    fewer = Pool.open(sorted((folder / "pool").glob("*.safetensors"))[:5])
    with pytest.raises(RunError, match=r"not there, or changed: run-5.*--members"):
        evaluate_further(tmp_path / "run", folder / "pool" / "task.py", 1, pool=fewer)
    assert not (tmp_path / "run" / "truths.sqlite").exists()


def test_another_task_is_refused(folder, tmp_path):
    shutil.copytree(folder / "untouched", tmp_path / "run")
    text = toy.TASK.replace("toy.batches(toy.TRAINING)", "toy.batches(toy.TRAINING)[1:]")
    (tmp_path / "task.py").write_text(text)
    with pytest.raises(RunError, match="belongs to another run: calibration data"):
        evaluate_further(tmp_path / "run", tmp_path / "task.py", 1)


def test_damaged_truths_are_noticed(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run" / "truths.sqlite"
    import sqlite3

    with sqlite3.connect(path) as database:
        database.execute("UPDATE evaluations SET score = 2.0 WHERE id = 1")
    with pytest.raises(RunError, match=r"truths.sqlite is damaged.*delete it"):
        RunRecord.read(tmp_path / "run")


def test_truths_of_another_run_are_refused(folder, tmp_path):
    shutil.copytree(folder / "untouched", tmp_path / "run")
    Ledger(tmp_path / "run" / "truths.sqlite", run="0" * 32).close()
    with pytest.raises(RunError, match="another run's"):
        RunRecord.read(tmp_path / "run")


def test_a_program_has_no_estimates_and_the_rest(folder, tmp_path, radin_command):
    """Its runs have no outputs: what needs them says so; its further soups are evaluated by the same program."""
    score = tmp_path / "score.py"
    score.write_text(
        "import sys\nfrom safetensors.numpy import load_file\n"
        "print(-float((load_file(sys.argv[1])['4.weight'] ** 2).sum()))\n"
    )
    command = f"{sys.executable} {score} {{soup}}"
    members = sorted((folder / "pool").glob("*.safetensors"))[:4]
    done = radin_command("cook", *members, "--eval", command, "--budget", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    drawn = radin_command(
        *("figures", tmp_path / "run", "--eval", command, "--evaluate", 6, "--figure", 2, "--figure", 4, "--json")
    )
    assert drawn.returncode == 0, drawn.stderr
    found = json.loads(drawn.stdout)
    assert "has no outputs of its members" in found["figures"]["2"]["why"]
    assert {c["name"] for c in found["figures"]["4"]["courses"]} == {
        "this run (adaptive)",
        "uniform",
        "greedy",
        "top-k",
    }
    assert (tmp_path / "run" / "figures" / "figure-4-budget.svg").is_file()


def test_the_command_line(folder, tmp_path, radin_command):
    done = radin_command("figures", folder / "run", "--figure", "5", "--figure", "table", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"figure 5: {tmp_path / 'figure-5-large-and-small.svg'}" in done.stdout
    assert "| greedy |" in done.stdout
    assert (tmp_path / "table-1.md").read_text().startswith("| validation | B = 1 |")
    refused = radin_command("figures", folder / "run", "--evaluate", "3")
    assert refused.returncode == 2
    assert "--evaluate needs what evaluated the run: --task task.py" in refused.stderr

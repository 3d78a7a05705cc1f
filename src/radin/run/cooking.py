"""The main job: pool -> outputs -> search -> evaluations -> soup. The only place that knows the order of things."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import radin
from radin.errors import RadinError, RunError
from radin.metrics import Metric
from radin.passes import Evaluation, Evaluator, LocalEngine, OutputStore, Task, collect_outputs, stream_outputs
from radin.passes.batches import Progress
from radin.passes.evaluate import evaluation, from_values
from radin.recipe import Recipe
from radin.run.directory import RunDirectory, write_json
from radin.run.ledger import Ledger
from radin.run.preflight import Preflight, preflight
from radin.run.reasons import reasons_for_no_gain
from radin.run.result import Gain, Passes, Result, Scored
from radin.search import Search
from radin.search.estimate import (
    Estimator,
    Keys,
    MarginCompiler,
    estimator,
    estimator_of,
    load_margins,
    save_margins,
)
from radin.search.strategies import base
from radin.weights import Pool, average, geometry, integer_source, read_recipe, recipe_metadata, save

# Cached outputs may come from another device or thread count; more than this is another model or other preprocessing.
_SAME_OUTPUTS = 2e-2


def cook(
    pool: Pool | str | Path | Iterable[str | Path],
    task: Task | str | Path,
    *,
    budget: int,
    out: str | Path,
    strategy: str = "radin",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    uniform: bool = True,
    device: str = "auto",
    precision: str = "float32",
    batch_size: int | None = None,
    members_at_once: int | None = None,
    outputs: str | Path | None = None,
    outputs_dtype: str = "float32",
    keep_outputs: bool = True,
    integers_from: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Find the best soup of ``pool`` that ``budget`` validation passes can buy; write it to ``out``/soup.safetensors.

    pool: a Pool, or what Pool.open takes. task: a Task, or what Task.load takes. budget: passes spent on soups in total
    over all sessions of this run; the members' own passes are not in it. out: the run directory; if the run is there
    already, it goes on where it stopped. strategy, options: see radin.search.strategies. uniform: spend one of the
    passes on the average of all members when the budget is at least 2. outputs: a folder for the members' outputs that
    several runs share, so that a member added later costs one pass and not N; default inside ``out``.
    keep_outputs=False compiles outputs as they are made and stores none: for accuracy and top-k, when disk is short;
    it gives up resuming inside a reading, other metrics, and adding members without new passes. integers_from: the
    member whose integer tensors the soup takes. progress: called with (what, done, total or None).

    Raises RadinError (one of its children) for anything the user can mend, before anything long starts where it can be
    known; never overwrites another run.
    """
    started = time.monotonic()
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise RadinError(f"the budget is the number of soups to evaluate and must be at least 1; got {budget!r}")
    settings = base.get(strategy).settings(options)
    task = Task.load(task)
    metric = task.get_metric()
    engine = LocalEngine.create(device, precision, batch_size, members_at_once)
    if not isinstance(pool, Pool):
        opening = (lambda done, total: progress("reading checkpoints", done, total)) if progress else None
        pool = Pool.open(pool, progress=opening)
    pool.require_several()
    integer_source(pool, Recipe.single(0, len(pool)), integers_from)  # refuses an unknown name before anything long
    checked = preflight(task, pool.shapes, pool[0].name, lambda: pool.tensors(0), engine, metric)

    if not keep_outputs and metric.family != "accuracy":
        raise RadinError(f"outputs need not be kept for accuracy and top-k only; metric {metric.name!r} needs them")
    identity = {
        "members": dict(zip(pool.fingerprints, pool.member_names, strict=True)),
        "data": None,
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "precision": precision,
        "outputs_dtype": outputs_dtype,
        "keep_outputs": keep_outputs,
    }
    asked = {
        "budget": budget,
        "strategy": strategy,
        "options": settings,
        "seed": seed,
        "uniform": uniform,
        "integers_from": integers_from,
        "versions": versions(),
    }
    with RunDirectory(Path(out), identity) as directory:
        if directory.is_new:
            directory.record(asked)  # before anything else is written: from here on the folder is known as a run's
        ledger = Ledger(directory.ledger)
        try:
            session = _Session(pool, task, metric, engine, directory, ledger, checked, integers_from, progress)
            session.seconds["open"] = time.monotonic() - started
            store = OutputStore(Path(outputs or directory.outputs), precision=precision, dtype=outputs_dtype)
            return session.run(asked, store, keep_outputs)
        finally:
            ledger.close()


def versions() -> dict[str, str]:
    """Of radin, Python, torch and numpy."""
    return {
        "radin": radin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


@dataclass(frozen=True)
class _Known:
    """What the members' passes gave: an estimator over the pool's order, targets, and outputs where they are kept."""

    estimator: Estimator
    targets: NDArray[Any]
    outputs: tuple[NDArray[Any], ...] | None


class _Session:
    """One process's work on a run directory."""

    def __init__(
        self,
        pool: Pool,
        task: Task,
        metric: Metric,
        engine: LocalEngine,
        directory: RunDirectory,
        ledger: Ledger,
        checked: Preflight,
        integers_from: str | None,
        progress: Progress | None,
    ) -> None:
        self.pool = pool
        self.metric = metric
        self.directory = directory
        self.ledger = ledger
        self.checked = checked
        self.task = task
        self.engine = engine
        self.evaluator = Evaluator(task, engine, metric)
        self.integers_from = integers_from
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.data = ""
        self.names = tuple(member.name for member in pool)

    def run(self, asked: Mapping[str, Any], store: OutputStore, keep_outputs: bool) -> Result:
        budget = asked["budget"]
        started = time.monotonic()
        known = self._stored_outputs(store) if keep_outputs else self._streamed_outputs(store)
        self.directory.bind_data(self.data, asked)
        self.seconds["outputs"] = time.monotonic() - started
        started = time.monotonic()
        search = Search(
            known.outputs,
            known.targets,
            metric=self.metric,
            strategy=asked["strategy"],
            options=asked["options"],
            budget=budget,
            seed=asked["seed"],
            keys=self.pool.fingerprints,
            names=self.names,
            estimator=known.estimator,
            singles=np.array([self._single(k).score for k in range(len(self.pool))]),
            gram=self._gram() if base.get(asked["strategy"]).geometry else None,
        )
        for entry in self.ledger.entries("soup", "validation"):
            search.tell(Recipe.from_json(entry.recipe, self.pool.fingerprints), entry.evaluation.score)
        self.seconds["search"] = time.monotonic() - started
        everyone = Recipe.uniform(range(len(self.pool)), len(self.pool))
        if asked["uniform"] and 2 <= budget > search.spent:
            search.tell(everyone, self._evaluate(everyone, search).score)
        while True:
            started = time.monotonic()
            recipe = search.ask()
            self.seconds["search"] += time.monotonic() - started
            if recipe is None:
                break
            search.tell(recipe, self._evaluate(recipe, search).score)
        self._write_soup(search.best[0])
        result = self._result(search, known, everyone, asked)
        write_json(self.directory.path / "recipe.json", result.to_json()["best"])
        write_json(self.directory.path / "result.json", result.to_json())
        return result

    def _gram(self) -> NDArray[np.float64]:
        progress = self.progress
        report = (lambda done, total: progress("distances between members", done, total)) if progress else None
        return geometry(self.pool, progress=report).gram

    def _stored_outputs(self, store: OutputStore) -> _Known:
        """Each member's outputs on disk, its score in the ledger, and an estimator that is kept beside them."""
        self._check_same_outputs(store)
        with store.lock():
            cached = collect_outputs(
                self.task,
                self.pool,
                store,
                self.engine,
                self.metric,
                expected_data=self.directory.identity["data"],
                progress=self.progress,
            )
        self.data = cached.data
        self.metric.check(cached.targets, cached.outputs[0].shape[1])
        for k, outputs in enumerate(cached.outputs):
            if self._known(Recipe.single(k, len(self.pool)), "member", "validation") is None:
                self._add_single(k, evaluation(self.metric, np.asarray(outputs), cached.targets, 0.0, self.data))
        self._report("reading the outputs")
        estimates = estimator(
            cached.outputs,
            cached.targets,
            self.metric,
            device=str(self.engine.device),
            cache=store.folder / "compiled.safetensors",
            keys=Keys.of(self.pool.fingerprints, self.data),
            names=self.names,
        )
        return _Known(estimates, cached.targets, cached.outputs)

    def _streamed_outputs(self, store: OutputStore) -> _Known:
        """Outputs compiled as they are made and stored nowhere; later sessions read the data and no model."""
        path = store.folder / "compiled.safetensors"
        expected = self.directory.identity["data"]
        members = len(self.pool)
        if expected is not None and path.exists():
            self._check_same_values()
            self.data, targets = stream_outputs(
                self.task, self.pool, self.engine, self.metric, None, expected_data=expected, progress=self.progress
            )
            margins, keys = load_margins(path)
            if keys.data != expected or set(keys.members) != set(self.pool.fingerprints):
                raise RunError(f"{path} was compiled from other weights or data. Delete it to make it again.")
            margins = margins.reordered([keys.members.index(f) for f in self.pool.fingerprints])
            return _Known(estimator_of(margins, self.metric, device=str(self.engine.device)), targets, None)
        compiler = MarginCompiler(members, self.checked.first_outputs.shape[1], top=self.metric.top, names=self.names)
        values: list[list[NDArray[np.float64]]] = [[] for _ in range(members)]

        def add(block: NDArray[Any], labels: NDArray[Any]) -> None:
            compiler.add(block, labels)
            assert self.metric.per_example is not None
            for mine, outputs in zip(values, block, strict=True):
                mine.append(self.metric.per_example(outputs, labels))

        self.data, targets = stream_outputs(
            self.task, self.pool, self.engine, self.metric, add, expected_data=expected, progress=self.progress
        )
        margins = compiler.finish()
        for k, parts in enumerate(values):
            self._add_single(k, from_values(np.concatenate(parts), 0.0, self.data))
        save_margins(margins, path, Keys.of(self.pool.fingerprints, self.data))
        return _Known(estimator_of(margins, self.metric, device=str(self.engine.device)), targets, None)

    def _single(self, k: int) -> Evaluation:
        found = self._known(Recipe.single(k, len(self.pool)), "member", "validation")
        assert found is not None
        return found

    def _add_single(self, k: int, found: Evaluation) -> None:
        self._add(Recipe.single(k, len(self.pool)), "member", "validation", found)

    def _report(self, what: str) -> None:
        if self.progress:
            self.progress(what, 0, None)

    def _check_same_outputs(self, store: OutputStore) -> None:
        """Raise RunError when the model gives other outputs than those cached: its code or its input changed."""
        stored = store.get(self.pool[0].fingerprint)
        if stored is None:
            return
        now = self.checked.first_outputs
        before = stored.array()[: len(now)].astype(np.float32)
        if before.shape != now.shape or np.abs(before - now).max() > _SAME_OUTPUTS * max(1.0, np.abs(before).max()):
            raise self._other_model()

    def _check_same_values(self) -> None:
        """The same where no outputs were kept, by what the first member got right."""
        now = self.metric.per_example
        assert now is not None
        values = now(self.checked.first_outputs, self.checked.first_targets)
        before = self._single(0).values
        assert before is not None
        if (values != before[: len(values)]).mean() > _SAME_OUTPUTS:
            raise self._other_model()

    def _other_model(self) -> RunError:
        return RunError(
            f"{self.directory.path}: {self.names[0]} gives other outputs on the first batch of validation() than "
            "those this run began with. The model's code or the data changed: give a new directory with --out."
        )

    def _known(self, recipe: Recipe, kind: str, split: str) -> Evaluation | None:
        return self.ledger.get(recipe.identity(self.pool.fingerprints), kind, split)

    def _add(self, recipe: Recipe, kind: str, split: str, found: Evaluation) -> None:
        identity = recipe.identity(self.pool.fingerprints)
        self.ledger.add(identity, recipe.to_json(self.names, self.pool.fingerprints), kind, split, found)

    def _evaluate(self, recipe: Recipe, search: Search) -> Evaluation:
        """The soup's true score on validation: one pass, committed at once. A new best is written to disk first."""
        known = self._known(recipe, "soup", "validation")
        if known is not None:
            return known
        started = time.monotonic()
        number = search.spent + 1
        what = f"soup {number} of {search.budget}, {recipe.size} members"
        model, tensors = self._build(recipe)
        found = self.evaluator.score(
            model, "validation", "the soup", expected_data=self.data, progress=self.progress, what=what
        )
        found = replace(found, seconds=time.monotonic() - started)
        if self.metric.utility(found.score) > self.metric.utility(search.best[1]):
            self._save(recipe, tensors)
        self._add(recipe, "soup", "validation", found)
        self.seconds["soups"] = self.seconds.get("soups", 0.0) + found.seconds
        return found

    def _build(self, recipe: Recipe) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The soup as a model on the device, BatchNorm re-estimated, and its tensors. A member alone stays as it is."""
        tensors = average(self.pool, recipe, integers_from=self.integers_from)
        return self.evaluator.prepare(tensors, "the soup", calibrate=not recipe.is_single)

    def _save(self, recipe: Recipe, tensors: dict[str, torch.Tensor]) -> None:
        calibrated = self.checked.batchnorm_layers and self.task.calibration is not None and not recipe.is_single
        extra = {"batchnorm": "re-estimated"} if calibrated else {}
        save(
            tensors,
            self.directory.soup,
            metadata=recipe_metadata(self.pool, recipe, extra, integers_from=self.integers_from),
        )

    def _write_soup(self, best: Recipe) -> None:
        """Make sure that soup.safetensors holds the best recipe; it does already unless a kill came in between."""
        if self.directory.soup.exists():
            held = read_recipe(self.directory.soup)
            if Recipe.from_json(held, self.pool.fingerprints) == best:
                return
        self._save(best, self._build(best)[1])

    def _result(self, search: Search, known: _Known, everyone: Recipe, asked: Mapping[str, Any]) -> Result:
        fingerprints = self.pool.fingerprints
        singles = search.singles
        order = sorted(range(len(singles)), key=lambda k: (-self.metric.utility(float(singles[k])), fingerprints[k]))
        top = Recipe.single(order[0], len(singles))
        best = search.best[0]
        names = {top: f"best single ({self.names[order[0]]})", everyone: "uniform soup"}
        names.setdefault(best, f"chosen soup, {best.size} members")
        looked = self._look_at_test([top, everyone, best])
        recipes = [recipe for recipe, _ in search.evaluations]
        estimates = dict(zip([*recipes, everyone], search.estimate([*recipes, everyone]), strict=True))

        def scored(recipe: Recipe, name: str) -> Scored:
            found = self._known(recipe, "member" if recipe.is_single else "soup", "validation")
            return Scored(
                name,
                recipe,
                found.score if found else None,
                found.stderr if found else None,
                float(estimates[recipe]) if recipe in estimates else None,
                found.seconds if found else None,
                looked.get(recipe, {}),
            )

        # A single member's averaged outputs are its own: then the average of all is the one to compare with.
        together = everyone if best.is_single else best
        pooled = self._ensemble(together, known)
        evaluations = tuple(scored(r, f"soup {i + 1}, {r.size} members") for i, r in enumerate(recipes))
        gain = self._gain(best, top)
        self.seconds["total"] = sum(self.seconds.values())
        return Result(
            out=self.directory.path,
            metric=self.metric.name,
            higher_is_better=self.metric.higher_is_better,
            examples=len(known.targets),
            member_names=self.names,
            fingerprints=tuple(fingerprints),
            best=scored(best, names[best]),
            best_single=scored(top, names[top]),
            uniform=scored(everyone, names[everyone]),
            ensemble=Scored("logit ensemble", together, *pooled),
            gain=gain,
            evaluations=evaluations,
            passes=Passes(len(singles), search.spent, asked["budget"]),
            strategy={"name": asked["strategy"], **asked["options"], "seed": asked["seed"]},
            seconds=dict(self.seconds),
            notes=(*self._duplicates(), *self.pool.notes, *self.checked.notes, *self._notes(gain, best)),
            reasons=self._reasons(evaluations) if best.is_single else (),
            versions=asked["versions"],
        )

    def _ensemble(self, recipe: Recipe, known: _Known) -> tuple[float, float]:
        """Score and standard error of a recipe's averaged outputs."""
        if known.outputs is not None:
            found = evaluation(self.metric, mixed(known.outputs, recipe), known.targets, 0.0, self.data)
            return found.score, found.stderr
        score = float(known.estimator.scores(np.array([recipe.weights]))[0])
        return score, float(np.sqrt(score * (1 - score) / max(len(known.targets) - 1, 1)))

    def _look_at_test(self, recipes: Sequence[Recipe]) -> dict[Recipe, dict[str, tuple[float, float]]]:
        """(score, stderr) of each recipe on test and every shift; each looked at once, then kept in the ledger."""
        splits = ["test"] if self.task.test is not None else []
        splits += [f"shifts/{name}" for name in self.task.shift_sources()]
        looked: dict[Recipe, dict[str, tuple[float, float]]] = {}
        started = time.monotonic()
        for recipe in dict.fromkeys(recipes):
            looked[recipe] = {}
            model: torch.nn.Module | None = None
            kind = "member" if recipe.is_single else "soup"
            for split in splits:
                found = self._known(recipe, kind, split)
                if found is None:
                    model = model or self._build(recipe)[0]
                    found = self.evaluator.score(model, split, f"{recipe.size} members", progress=self.progress)
                    self._add(recipe, kind, split, found)
                looked[recipe][split] = (found.score, found.stderr)
        self.seconds["test"] = time.monotonic() - started
        return looked

    def _gain(self, best: Recipe, top: Recipe) -> Gain:
        """Paired over examples where the metric is a mean of them; else from the two standard errors."""
        if best == top:
            return Gain(0.0, 0.0)
        soup, single = self._known(best, "soup", "validation"), self._known(top, "member", "validation")
        assert soup is not None
        assert single is not None
        if soup.values is not None and single.values is not None:
            differences = soup.values - single.values
            return Gain(soup.score - single.score, float(differences.std(ddof=1) / np.sqrt(len(differences))))
        return Gain(soup.score - single.score, float(np.hypot(soup.stderr, single.stderr)))

    def _duplicates(self) -> list[str]:
        return [f"{dropped} has the same weights as {kept}; used once" for dropped, kept in self.pool.duplicates]

    def _reasons(self, evaluations: Sequence[Scored]) -> tuple[str, ...]:
        return reasons_for_no_gain(
            self.pool,
            evaluations,
            self.metric,
            batchnorm_layers=self.checked.batchnorm_layers,
            calibrated=self.task.calibration is not None,
        )

    def _notes(self, gain: Gain, best: Recipe) -> list[str]:
        if best.is_single or abs(gain.difference) > 2 * gain.stderr:
            return []
        return [
            f"the gain on validation is within two standard errors ({gain.difference:+.4f} ± {gain.stderr:.4f}): "
            "the soup may be no better than the best single member. More validation examples would tell."
        ]


def mixed(outputs: Sequence[Any], recipe: Recipe, rows: int = 4096) -> NDArray[np.float64]:
    """The averaged outputs of a recipe, (examples, classes), from N arrays (examples, classes) read in blocks."""
    examples, classes = outputs[0].shape
    result = np.zeros((examples, classes))
    for start in range(0, examples, rows):
        for k in recipe.members:
            result[start : start + rows] += recipe.weights[k] * outputs[k][start : start + rows]
    return result

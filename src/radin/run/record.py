"""What a run directory knows, read without changing anything: finished, unfinished or under way.

Axis names: members N, recipes S, candidates K.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from radin import metrics
from radin.data.task import Task
from radin.errors import OutputsError, RunError, TaskError, printable
from radin.estimate import Estimator, estimator, estimator_of, load_margins
from radin.metrics import Metric
from radin.outputs.files import open_array, open_targets
from radin.question import VALIDATION, Answer, Floats, Rates
from radin.recipe import Recipe
from radin.run.directory import RunDirectory
from radin.run.identity import metric_identity
from radin.run.journal import has_ledger, is_empty
from radin.run.ledger import Ledger
from radin.run.result import Result
from radin.run.rows import REESTIMATED, Asked, Entry
from radin.run.truths import Truths
from radin.search import Search
from radin.search.candidates import equal_weights, subsets

CANDIDATES = 200  # the paper's C
NO_OUTPUTS = (
    "the run has no outputs of its members, so soups cannot be estimated from them (a program evaluates, or the "
    "outputs lie elsewhere: give them with --outputs)"
)


@dataclass(frozen=True, eq=False)
class KnownSoup:
    """A soup with its true score on all of validation. further: evaluated beside the run, not in its budget."""

    recipe: Recipe
    found: Answer
    further: bool


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run over N members in the pool's order; ``soups``: those known on all of validation, the run's own first.

    singles: (N,) the members' evaluations. reestimated: members evaluated again with their BatchNorm statistics
    estimated anew, by recipe; reestimated_since: the same beside the run, which no search had to beat. told: what the
    search asked and was answered, in the order of the answers. tests: what is known on test(). mixed: by recipe, the
    score of averaged outputs and the root mean square by which they differ from the soup's, where that was measured.
    estimator: scores recipes from the members' outputs; None where there are none.
    listed: estimates that the result holds, for runs without an estimator. settings: of the last session.
    """

    path: Path
    run: str
    metric: Metric
    names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    singles: tuple[Answer, ...]
    reestimated: Mapping[Recipe, Answer]
    reestimated_since: Mapping[Recipe, Answer]
    soups: tuple[KnownSoup, ...]
    told: tuple[Asked, ...]
    tests: Mapping[Recipe, Answer]
    mixed: Mapping[Recipe, tuple[Answer, float]]
    estimator: Estimator | None
    listed: Mapping[Recipe, float]
    finished: bool

    @classmethod
    def read(cls, directory: str | Path, *, task: Task | None = None, outputs: str | Path | None = None) -> RunRecord:
        """The record of a run directory. ``task``: for a metric that is a function of the user's. ``outputs``: the
        folder of the members' outputs where it is not in the directory.

        Raises RunError when there is no run, or one whose members are not evaluated yet, or damaged files.
        """
        path = Path(directory)
        if not (path / "run.json").is_file() or not has_ledger(path):
            raise RunError(f"{path} is not a run directory: it has no run.json and ledger.sqlite. Give cook's --out.")
        found = RunDirectory(path, {}).read()
        identity, settings = found["identity"], found["settings"]
        prints = tuple(map(str, identity["members"]))
        names = tuple(printable(name) for name in identity["members"].values())
        metric = metric_of(identity, task)
        ledger = Ledger(path / "ledger.sqlite", run=found["run"], read_only=True)
        try:
            members = {entry.identity: entry.evaluation for entry in ledger.entries("member", VALIDATION)}
            again = ledger.entries(REESTIMATED, VALIDATION)
            own = ledger.soups()
            told = sorted((q for q in ledger.questions() if q.answer is not None), key=lambda q: q.told or 0)
            tests = [entry for kind in ("member", REESTIMATED, "soup") for entry in ledger.entries(kind, "test")]
        finally:
            ledger.close()
        singles = [members.get(Recipe.single(k, len(prints)).identity(prints)) for k in range(len(prints))]
        known = tuple(answer for answer in singles if answer is not None)
        if len(known) < len(prints):
            raise RunError(
                f"{path}: {len(known)} of {len(prints)} members are evaluated so far; give the run's cook command first"
            )
        further: list[Entry] = []
        averaged: dict[str, Answer] = {}
        apart: list[Entry] = []
        if not is_empty(path / "truths.sqlite"):
            truths = Truths.beside(path, found["run"], read_only=True)
            try:
                further = truths.found(VALIDATION)
                tests += truths.found("test")
                averaged, apart = {e.identity: e.evaluation for e in truths.averaged()}, truths.apart()
            finally:
                truths.close()

        data = identity.get(VALIDATION)
        for entry in (*own, *further):
            if data is not None and entry.evaluation.data not in ("", data):
                raise RunError(
                    f"{path} holds an evaluation over other data ({entry.evaluation.data[:12]}) than validation of "
                    f"this run ({data[:12]}): a file of another run was put there"
                )

        def by_recipe(entries: Sequence[Entry]) -> dict[Recipe, Answer]:
            return {Recipe.from_json(entry.recipe, prints): entry.evaluation for entry in entries}

        ours, others = by_recipe(own), by_recipe(further)
        soups = [KnownSoup(recipe, answer, False) for recipe, answer in ours.items()]
        soups += [KnownSoup(r, a, True) for r, a in others.items() if r not in ours and not r.reestimated]
        finished = (path / "result.json").is_file()
        return cls(
            path=path,
            run=found["run"],
            metric=metric,
            names=names,
            fingerprints=prints,
            settings=settings,
            identity=identity,
            singles=known,
            reestimated=by_recipe(again),
            reestimated_since=by_recipe([e for e in further if e.kind == REESTIMATED]),
            soups=tuple(soups),
            told=tuple(told),
            tests=by_recipe(tests),
            mixed={
                Recipe.from_json(e.recipe, prints): (averaged[e.identity], e.evaluation.score)
                for e in apart
                if e.identity in averaged
            },
            estimator=_estimator(Path(outputs or path / "outputs"), prints, names, metric, identity),
            listed=_listed(path, prints) if finished else {},
            finished=finished,
        )

    # -- the members

    @property
    def members(self) -> int:
        """N."""
        return len(self.names)

    @cached_property
    def rates(self) -> Rates:
        """What questions cost."""
        found = self.settings.get("rates")
        return Rates() if found is None else Rates(**found)

    @property
    def seed(self) -> int:
        """The run's seed, which candidates are drawn with too."""
        return int(self.settings.get("seed", 0))

    @property
    def own(self) -> tuple[KnownSoup, ...]:
        """The soups that the run itself evaluated."""
        return tuple(soup for soup in self.soups if not soup.further)

    @cached_property
    def scores(self) -> Mapping[Recipe, Answer]:
        """The true answer of every soup that is known."""
        return {soup.recipe: soup.found for soup in self.soups}

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The members best first, equal ones by content."""
        utility = [self.metric.utility(answer.score) for answer in self.singles]
        return tuple(sorted(range(self.members), key=lambda k: (-utility[k], self.fingerprints[k])))

    @property
    def reference(self) -> tuple[Recipe, Answer]:
        """What a soup has to beat: the best single member, or the best re-estimated one where that is better."""
        best = self.order[0]
        found: list[tuple[Recipe, Answer]] = [(Recipe.single(best, self.members), self.singles[best])]
        found += sorted(self.reestimated.items(), key=lambda pair: pair[0].weights)
        return max(found, key=lambda pair: self.metric.utility(pair[1].score))

    # -- recipes

    def search(self, strategy: str, options: Mapping[str, Any], budget: int) -> Search:
        """A search over the same members, as the run had it, that asks about whole soups."""
        return Search(
            None,
            metric=self.metric,
            strategy=strategy,
            options=options,
            budget=budget,
            seed=self.seed,
            keys=self.fingerprints,
            names=self.names,
            estimator=self.estimator,
            singles=np.array([answer.score for answer in self.singles]),
        )

    @cached_property
    def candidates(self) -> tuple[Recipe, ...]:
        """The paper's candidates (K,) in the order in which the run's seed draws them: of the run where it is such."""
        options = self.settings.get("options", {}) if self.settings.get("strategy") == "paper" else {}
        sizes = options.get("sizes")
        rng = np.random.default_rng(self.seed)
        masks = subsets(
            self.members, options.get("candidates", CANDIDATES), rng, None if sizes is None else tuple(sizes), True
        )
        translate = self.search("best", {}, 1).recipe
        return tuple(translate(row) for row in equal_weights(masks))

    def estimates(self, recipes: Sequence[Recipe]) -> Floats:
        """Scores of averaged outputs (S,), in the metric's units; NaN where they are not known."""
        found = np.array([self.listed.get(recipe, np.nan) for recipe in recipes], dtype=np.float64)
        places = [k for k, recipe in enumerate(recipes) if not recipe.affine]  # the others' take outputs, not margins
        if self.estimator is not None and places:
            ratios = np.array([recipes[k].weights for k in places], dtype=np.float64)
            found[places] = np.asarray(self.estimator.scores(ratios), dtype=np.float64)
        return found


def _unknown_metric(outputs: Any, targets: Any) -> NoReturn:
    raise RunError("only the run's task can score outputs by this metric: give it with --task")


def metric_of(identity: Mapping[str, Any], task: Task | None) -> Metric:
    """The run's metric: radin's own or the task's where they are the same by code, else only its name and direction."""
    name, code = str(identity["metric"]), identity.get("the metric's code")
    offered = [] if task is None else [task.get_metric()]
    with contextlib.suppress(TaskError):
        offered.append(metrics.get(name))
    for metric in offered:
        if code is not None and metric.name == name and metric_identity(metric) == code:
            return metric
    return Metric(printable(name), bool(identity["higher_is_better"]), "any", _unknown_metric)


def _estimator(
    folder: Path, prints: tuple[str, ...], names: tuple[str, ...], metric: Metric, identity: Mapping[str, Any]
) -> Estimator | None:
    """From the run's compiled margins, or else from the outputs; None where neither is there, or the metric is not."""
    if metric.value is _unknown_metric:
        return None
    data = identity.get(VALIDATION)
    try:
        margins, keys = load_margins(folder / "compiled.safetensors")
        if keys.data == data and set(keys.members) == set(prints):
            return estimator_of(margins.reordered([keys.members.index(f) for f in prints]), metric)
    except OutputsError:  # not there, damaged, or for another metric: the outputs say the same
        pass
    paths = [folder / f"{fingerprint[:32]}.safetensors" for fingerprint in prints]
    targets = folder / "targets.safetensors"
    if not targets.is_file() or not all(path.is_file() for path in paths):
        return None
    arrays = [open_array(path, fingerprint) for path, fingerprint in zip(paths, prints, strict=True)]
    return estimator(arrays, open_targets(targets), metric, names=names)


def _listed(path: Path, prints: tuple[str, ...]) -> dict[Recipe, float]:
    """The estimates in result.json, over this order of the members."""
    result = Result.load(path)
    if set(result.fingerprints) != set(prints):
        raise RunError(f"{path}: result.json is another run's: it was put here. The same cook command writes it again.")
    order = [result.fingerprints.index(fingerprint) for fingerprint in prints]
    found = [scored for scored in (*result.evaluations, result.uniform) if scored.estimate is not None]
    return {scored.recipe.permuted(order): float(scored.estimate or 0.0) for scored in found}

"""The main job: pool -> members -> search -> soups -> the best. The only place that knows the order of things."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import radin
from radin.checks import whole_number
from radin.checksums import sealed
from radin.data.task import Task, TaskText
from radin.disks import url_of
from radin.engine.base import Engine
from radin.engine.command import Command, CommandEngine
from radin.engine.crew import Cluster, CrewCommandEngine
from radin.errors import RadinError, RunError
from radin.events import FORMAT, Events, OnEvent
from radin.files import told, write_json
from radin.objectives import objectives
from radin.progress import Progress, logged
from radin.question import Failure, Floats, Gradient, Indices, Question, Rates
from radin.recipe import Recipe
from radin.run import references
from radin.run.card import cooked_card, of_folders
from radin.run.directory import RunDirectory, way_on
from radin.run.evaluators import EngineEvaluator, Evaluator, TaskEvaluator
from radin.run.job import Job
from radin.run.ledger import Ledger
from radin.run.members import Known
from radin.run.outcome import Outcome
from radin.run.result import Result
from radin.run.session import Session
from radin.search import Search
from radin.search.account import Account
from radin.search.leading import LEADING
from radin.search.strategies import base
from radin.stats.split import split_halves
from radin.weights import Pool, integer_source
from radin.weights.beside import files_source
from radin.weights.grouping import groupings
from radin.weights.paths import absolute, natural_key, require_utf8
from radin.weights.remote import is_url

__all__ = ["cook", "versions"]

# The uniform soup gets a pass where that is at most an eighth of the budget.
UNIFORM_FROM = 8
# Where any question costs more than this share of a pass, asking about some of the examples gains nothing.
_READING = 0.5
_TRIED = 8  # examples, to see whether a gradient can be had
_LEARNED = 8  # passes from which on ratios are learned by default: from here on it is measured
_WORKERS = 1024  # processes at most: more is a slip
# Soups evaluated on the half that chooses: one for every so many passes, and the most.
_PASSES_PER_FINALIST, _FINALISTS = 3, 4


def cook(
    pool: Pool | str | Path | Iterable[str | Path],
    task: Task | TaskText | Command | Engine | str | Path,
    *,
    budget: int,
    out: str | Path,
    strategy: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    uniform: bool | None = None,
    choose_on_half: bool = False,
    workers: int = 1,
    engine: Cluster | None = None,
    device: str = "auto",
    precision: str = "float32",
    batch_size: int | None = None,
    members_at_once: int | None = None,
    outputs: str | Path | None = None,
    outputs_dtype: str = "float32",
    keep_outputs: bool = True,
    scores: str | Path | Sequence[float] | None = None,
    metric: str = "accuracy",
    integers_from: str | None = None,
    files_from: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
) -> Result:
    """Find the best soup of ``pool`` that ``budget`` validation passes can buy; write it into ``out``.

    The soup is ``out``/soup.safetensors; where the members are folders, the folder ``out``/soup, with the files that
    theirs have and a model card; where a program evaluates, in the members' own format.

    pool: a Pool, or what Pool.open takes. task: a Task, what Task.load takes, a Command (any program that scores a
    checkpoint) or an Engine of your own. budget: passes spent on soups in total over all sessions of this run; the
    members' own passes are not in it, nor those of single members with their BatchNorm statistics estimated again (the
    best single, and the main member of the best soup). A soup may be evaluated on some examples only and then costs its
    share of a pass. Where reading all of the data is more than half of the work, only whole soups are evaluated; where
    BatchNorm statistics are estimated again, a pass is the validation examples and the calibration examples, and
    starting a soup costs the latter. out: the run directory; if the run is there already, it continues where it
    stopped. strategy, options: see radin.search.strategies; by default ``learned-by-layer`` where a task's model or an
    engine gives gradients and the budget is 8 or more, else ``adaptive``. uniform: whether to spend a pass on the
    average of all members first; by default from a budget of 8 on. workers: processes on this machine that evaluate
    soups side by side (a Command has its ``jobs``). engine: workers elsewhere, which make the members' outputs too and
    run a Command: ``radin.Ray(...)``, ``radin.Slurm(...)``; by default all is done on this machine.
    outputs: a folder for the members' outputs that several runs share, so that a member added later costs one pass and
    not N; default inside ``out``. A URL (s3://, gs://): what lies there is copied to ``out``/outputs first, and what is
    made is sent there when it is made. With a Command: a folder (or URL) of outputs that were saved elsewhere, from
    which recipes are estimated by ``metric``. keep_outputs=False compiles outputs as they are made and stores none: for
    accuracy, top-k, token and pixel accuracy and mean IoU, when disk is short; it gives up resuming inside a reading,
    other metrics, and adding members without new passes. scores: with a Command, the members' own scores where they are
    known: a file, or one number for each in the pool's order. integers_from: the member whose integer tensors the soup
    takes. files_from: the member whose files beside the weights (config, tokenizer) a soup's folder takes; by default
    the one with the largest ratio.
    device: where models run, "auto", "cpu", "cuda", "cuda:1", ...; precision: "float32", "bfloat16" or "float16"
    (autocast). batch_size: what the task's batches are cut to at most. members_at_once: members that share one reading
    of the data; by default what fits. outputs_dtype: of the members' outputs on disk; "float16" halves them.
    command: what was typed, for the model card. progress: called with (what, done, total or None). on_event: called
    with each Event (radin.events): a member evaluated, a question asked or answered, the best changed; such as one of
    radin.integrations.trackers. An error of its own is said once and ends nothing.

    choose_on_half: search on half of the validation examples, drawn by class and seed, and choose on the others, which
    the search never sees: among the soups that the search found best, evaluated on these too, and the members. All
    scores reported are then those on the half that chooses. For metrics that are a mean over examples, and by position.

    Raises RadinError (one of its children) for anything the user can mend, before anything long starts where it can be
    known; never overwrites another run.
    """
    started, progress, events = time.monotonic(), logged(progress), Events(on_event)
    budget = whole_number("the budget, the number of passes to spend on soups,", budget, 1)
    workers = whole_number("workers, the number of processes that evaluate soups,", workers, 1, _WORKERS)
    seed = whole_number("the seed", seed, 0, None)
    if outputs is not None and not is_url(outputs):
        outputs = url_of(Path(outputs)) or outputs  # of two slashes a path leaves one
    for folder in (out, outputs or ""):
        require_utf8(folder)
    RunDirectory.require_folder(Path(out))
    if strategy is not None:
        settings = base.get(strategy).settings(options)
    if not isinstance(task, Command | Engine):
        spec = None if isinstance(task, Task) else task
        task = Task.load(task)
        task.get_metric()
    if strategy is None:
        plain = bool(options) or choose_on_half or budget < _LEARNED
        strategy = "learned-by-layer" if not plain and _gives_gradients(task) else "adaptive"
        settings = base.get(strategy).settings(options)
    if not isinstance(pool, Pool):
        opening = (lambda done, total: progress("reading checkpoints", done, total)) if progress else None
        pool = Pool.open(pool, progress=opening)
    pool.require_several()
    integer_source(pool, Recipe.single(0, len(pool)), integers_from)  # refuses an unknown name before anything long
    files_source(pool, Recipe.single(0, len(pool)), files_from)
    # Sums are rounded by the order in which members come: work in one that does not depend on how they were listed. An
    # engine of the user's is asked about recipes over the pool as the user has it.
    listed: Sequence[int] = range(len(pool))
    if not isinstance(task, Engine):
        places = [natural_key(member.path) for member in pool]
        order = sorted(listed, key=places.__getitem__)
        listed, pool = np.argsort(order).tolist(), pool.reordered(order)
        if scores is not None and not isinstance(scores, str | Path) and len(scores) == len(pool):
            scores = [scores[k] for k in order]
    evaluator: Evaluator
    crew = None
    if engine is not None:
        crew = partial(engine.crew, folder=Path(out))
        if progress:
            progress(f"reaching {engine.name}", 0, None)
        if workers > 1 or isinstance(task, Engine):
            raise RadinError("engine says where workers are: give no others beside it, and no engine of your own")
    if isinstance(task, Command):
        scratch = Path(out) / "scratch"
        if engine is not None and crew is not None:
            task = CrewCommandEngine(pool, task, scratch, crew, engine.count(), integers_from, files_from)
        else:
            task = CommandEngine(pool, task, scratch, integers_from, files_from=files_from)
    if isinstance(task, Engine):
        evaluator = EngineEvaluator(pool, task, scores=scores, outputs=outputs, metric=metric)
    else:
        if scores is not None:
            raise RadinError("scores are for programs that evaluate; a task's model gives the members' scores itself")
        evaluator = TaskEvaluator(
            pool,
            task,
            spec,
            workers=workers if engine is None else engine.count(),
            device=device,
            precision=precision,
            batch_size=batch_size,
            members_at_once=members_at_once,
            outputs=outputs,
            outputs_dtype=outputs_dtype,
            keep_outputs=keep_outputs,
            integers_from=integers_from,
            files_from=files_from,
            crew=crew,
        )
    if choose_on_half:
        evaluator.require_halves()
    chosen = evaluator.metric
    identity = {
        "members": dict(zip(pool.fingerprints, pool.member_names, strict=True)),
        "metric": chosen.name,
        "higher_is_better": chosen.higher_is_better,
        "halves": f"searched and chosen on halves drawn by seed {seed}" if choose_on_half else "one set for both",
        **evaluator.identity(),
    }
    asked: dict[str, Any] = {
        "budget": budget,
        "strategy": strategy,
        "options": settings,
        "seed": seed,
        "uniform": budget >= UNIFORM_FROM if uniform is None else uniform,
        "versions": versions(),
        "paths": {member.fingerprint: str(absolute(member.path)) for member in pool},
        "files_from": files_from,
    }
    with (
        events.failures(),
        told(Path(out), doing="used"),
        RunDirectory(Path(out), identity) as directory,
        evaluator.engine as answers,
    ):
        recorded = directory.read().get("settings", {})
        if not recorded:
            directory.record(asked)  # before anything else is written: from here on the folder is known as a run's
        asked |= {name: recorded[name] for name in ("cached_members", "device", "rates") if name in recorded}
        if directory.ledger_is_gone:
            raise RunError(
                f"{directory.ledger} is gone or empty, and with it all that was evaluated. {way_on(directory.path)}"
            )
        ledger = Ledger(directory.ledger, run=directory.run, metric=chosen)
        try:
            job = Job(pool, chosen, directory, ledger, progress, *evaluator.about)
            job.events = events
            _started(job, asked, resumed=bool(recorded))
            job.notes += (*directory.notes, *ledger.notes)
            job.spent("open", time.monotonic() - started)
            answers.progress = job.advance if progress else None
            evaluator.verify(job, asked)
            if "cached_members" not in asked:
                asked["cached_members"] = evaluator.cached(job)
                asked["device"] = None if asked["cached_members"] else evaluator.device
                directory.record(asked)  # what this session makes was not there before the run, if it is killed
            known = _members(job, evaluator)
            rates = _rates(recorded, evaluator.bind(job, known, asked))
            asked["rates"] = vars(rates)
            directory.record(asked)
            outcome = _spend(job, answers, evaluator, known, rates, asked, choose_on_half)
            outcome.reestimate(answers)
            outcome.session.write(outcome.best(), again=recorded.get("files_from", files_from) != files_from)
            _check_members(job, outcome.best())
            outcome.evaluate_splits(answers.splits)
            evaluator.bind_splits(job, asked)
            job.notes += tuple(note for note in answers.notes if note not in job.notes)
            if outcome.session.soup.is_dir():
                job.notes += of_folders(pool, outcome.best(), files_from)
            result = outcome.result(asked).reordered(listed)
            if result.soup.is_dir():
                outcome.session.add_card(cooked_card(pool.reordered(listed), result, files_from, command))
        finally:
            ledger.close()
            shutil.rmtree(directory.searched_half, ignore_errors=True)
        write_json(directory.path / "recipe.json", sealed(result.to_json()["best"]))
        write_json(directory.path / "result.json", sealed(result.to_json()))
        _finished(events, result)
        return result


def _started(job: Job, asked: Mapping[str, Any], *, resumed: bool) -> None:
    """Tell whoever listens what is cooked, and how."""
    job.events(
        "started",
        format=FORMAT,
        command="cook",
        run=job.directory.run,
        out=str(absolute(job.directory.path)),
        resumed=resumed,
        members=list(job.names),
        metric=job.metric.name,
        higher_is_better=job.metric.higher_is_better,
        **{name: asked[name] for name in ("budget", "strategy", "options", "seed", "versions")},
    )


def _finished(events: Events, result: Result) -> None:
    """Tell whoever listens how it ended."""
    best, single = result.best, result.reference
    events(
        "finished",
        score=best.score,
        stderr=best.stderr,
        members=best.recipe.size,
        single=single.score,
        gain=result.gain.difference,
        gain_stderr=result.gain.stderr,
        splits={split: {"score": score, "stderr": stderr} for split, (score, stderr) in best.splits.items()},
        spent=result.passes.soups,
        budget=result.passes.budget,
        seconds=result.seconds["total"],
        soup=str(absolute(result.soup)),
    )


def versions() -> dict[str, str]:
    """Of radin, Python, torch and numpy."""
    return {
        "radin": radin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _members(job: Job, evaluator: Evaluator) -> Known:
    started = time.monotonic()
    known = evaluator.members(job)
    job.spent("outputs", time.monotonic() - started)
    return known


def _check_members(job: Job, best: Recipe) -> None:
    """Raise CheckpointError unless the chosen members' weights are to the last bit those that the run began with."""
    for k in best.members:
        job.report(f"checking that {job.names[k]} is as it was")
        job.pool[k].require_unchanged(content=True)


def _rates(recorded: Mapping[str, Any], found: Rates) -> Rates:
    """What questions cost; the share that reading takes, which is measured, stays what the run began with."""
    if "rates" in recorded:
        return Rates(found.examples, found.calibration, recorded["rates"]["reading"])
    return found


def _spend(
    job: Job,
    engine: Engine,
    evaluator: Evaluator,
    known: Known,
    rates: Rates,
    asked: Mapping[str, Any],
    on_half: bool,
) -> Outcome:
    """Spend the budget; all examples decide, or those that the search does not see."""
    if on_half:
        return _on_halves(job, engine, evaluator, known, rates, asked)
    singles = np.array([job.single(k).score for k in range(len(job.pool))])
    single = _single_to_beat(job, engine, None)
    session = Session(
        job,
        engine,
        lambda: _search(job, engine, known, asked, singles, _account(job, asked, rates), _parts(evaluator, rates)),
        _decisive(asked, rates),
        best=single,
    )
    session.tell_best(*_best_known(job, session, None))
    session.spend()
    return Outcome(job, known, session, None)


def _on_halves(
    job: Job, engine: Engine, evaluator: Evaluator, known: Known, rates: Rates, asked: Mapping[str, Any]
) -> Outcome:
    """Search on one half of the examples, evaluate the best found on the other too.

    A pass is M + K examples here too. The search may spend what is left after a few evaluations on the other half are
    laid aside; these then take as many of its complete soups, best first, as the budget allows.
    """
    budget = asked["budget"]
    whole_targets = known.examples if known.targets is None or job.metric.by_position else known.targets
    half, choose = split_halves(whole_targets, asked["seed"])
    numbers = [job.single(k).numbers for k in range(len(job.pool))]
    started = time.monotonic()
    seen = evaluator.some_examples(job, known, half)
    job.spent("outputs", time.monotonic() - started)
    finalists = min(_FINALISTS, max(1, budget // _PASSES_PER_FINALIST))
    whole = budget * (rates.examples + rates.calibration) - finalists * len(choose)
    limit = whole // (len(half) + rates.calibration)
    if "finish" in asked["options"]:
        options = {**asked["options"], "finish": max(finalists, asked["options"]["finish"])}
        asked = {**asked, "options": options}
    singles = np.array([np.nan if found is None else job.metric.score(found[half]) for found in numbers])
    session = Session(
        job,
        engine,
        lambda: _search(
            job, engine, seen, asked, singles, _account(job, asked, rates), _parts(evaluator, rates), half, limit
        ),
        _decisive(asked, rates) | {"halves": True},
        choose=choose,
        best=_single_to_beat(job, engine, choose),
    )
    session.tell_best(*_best_known(job, session, choose))
    session.spend()
    told = sorted(session.search.evaluations, key=lambda pair: -job.metric.utility(pair[1]))
    found = [recipe for recipe, score in told if np.isfinite(score)]
    first = [job.uniform_recipe] if asked["uniform"] and job.uniform_recipe in found else []
    session.choose(list(dict.fromkeys([*first, *found])), choose)
    return Outcome(job, known, session, choose)


def _single_to_beat(job: Job, engine: Engine, choose: Indices | None) -> float:
    """The utility that a soup must exceed. The best single member is evaluated with its statistics re-estimated too."""
    references.reestimate(job, engine, references.best_of(job, references.singles(job), choose).members[0])
    return references.utility(job, references.to_beat(job, choose), choose)


def _best_known(job: Job, session: Session, choose: Indices | None) -> tuple[Recipe, float]:
    """The best model when a session begins, and its utility: a soup of earlier sessions, or what soups have to beat."""
    single = references.to_beat(job, choose)
    found = [(single, references.utility(job, single, choose))]
    for recipe in session.account.started:
        if (answer := session.answer(recipe)) is not None:
            found.append((recipe, job.metric.utility(references.on(answer, choose, job.metric).score)))
    return max(found, key=lambda pair: pair[1])


def _account(job: Job, asked: Mapping[str, Any], rates: Rates) -> Account:
    return Account(asked["budget"], rates, job.metric.score)


def _gram(job: Job, known: Known, strategy: base.Strategy) -> Floats | Callable[[Indices], Floats] | None:
    """Inner products of the members' weights, as far as the strategy looks at them."""
    if not strategy.geometry:
        return None
    if not strategy.leads or len(job.pool) <= LEADING:
        return job.gram
    note = f"{strategy.name} looked for soups of the {LEADING} best of {len(job.pool):,} members alone"
    if note not in job.notes:
        job.notes += (note,)
    return job.gram if known.outputs is None and known.estimator is None else job.gram_of


def _parts(evaluator: Evaluator, rates: Rates) -> bool:
    return evaluator.parts and rates.reading <= _READING


def _decisive(asked: Mapping[str, Any], rates: Rates) -> dict[str, Any]:
    """What decides the questions of a session, besides the run's identity."""
    names = ("budget", "strategy", "options", "seed", "uniform")
    return {name: asked[name] for name in names} | {"rates": vars(rates), "radin": asked["versions"]["radin"]}


def _gives_gradients(task: Task | Command | Engine) -> bool:
    """Whether ratios can be learned by what scores soups, as far as it says."""
    if isinstance(task, Engine):
        return task.gradients
    return isinstance(task, Task) and bool(objectives(task.get_metric()))


def _gradients(job: Job, engine: Engine, strategy: str, examples: int) -> Mapping[str, tuple[str, ...]] | None:
    """Groups of tensors whose ratios can be learned; None where the strategy learns none, or none can be learned here.

    Of the latter the user is told.
    """
    if not base.get(strategy).gradients:
        return None
    why: str | None = "what evaluates the soups gives no gradients"
    if not objectives(job.metric):
        why = f"{job.metric.name} has nothing differentiable to learn by; a radin.Metric of your own may have a loss"
    elif engine.gradients:
        why = _why_no_gradient(job, engine, examples)
        if why is None:
            return groupings(job.pool.sizes)
    note = f"no ratios were learned: {why}. The budget was spent as by strategy 'adaptive'"
    job.notes += () if note in job.notes else (note,)
    return None


def _why_no_gradient(job: Job, engine: Engine, examples: int) -> str | None:
    """Why no gradient can be had, before anything is spent on one; None where one can: a few examples tell."""
    two = Recipe.uniform(range(2), len(job.pool))
    engine.submit(Question(two, np.arange(min(_TRIED, examples)), gradient=Gradient(objectives(job.metric)[0])))
    failed = [answer.message for _, answer in engine.wait() if isinstance(answer, Failure)]
    return failed[0].rstrip(".") if failed else None


def _search(
    job: Job,
    engine: Engine,
    known: Known,
    asked: Mapping[str, Any],
    singles: Floats,
    account: Account,
    parts: bool,
    among: Indices | None = None,
    limit: int | None = None,
) -> Search:
    started = time.monotonic()
    gradients = _gradients(job, engine, asked["strategy"], account.rates.examples)
    search = Search(
        known.outputs,
        known.targets,
        metric=job.metric,
        strategy=asked["strategy"],
        options=asked["options"],
        budget=asked["budget"] if limit is None else limit,
        seed=asked["seed"],
        keys=job.pool.fingerprints,
        names=job.names,
        estimator=known.estimator,
        singles=singles,
        gram=_gram(job, known, base.get(asked["strategy"])),
        parts=parts,
        gradients=gradients,
        account=account,
        among=among,
        slots=engine.slots,
        progress=job.progress,
    )
    if asked["uniform"]:
        search.enqueue(job.uniform_recipe)
    job.spent("search", time.monotonic() - started)
    return search

"""What a soup has to beat: the best single member, as it is and with its BatchNorm statistics estimated again.

Every soup's statistics are estimated again over calibration(), a checkpoint keeps its own. So a soup can be better than
any member because of that alone. A member with its statistics estimated again tells the two apart. It is no soup: its
pass is one of the members' passes, not of the budget, and the same for every strategy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from radin.engine.base import Engine
from radin.errors import RunError
from radin.metrics import Metric
from radin.question import VALIDATION, Answer, Failure, Indices, Question, answer_from_numbers
from radin.recipe import Recipe
from radin.run.job import Job
from radin.run.rows import REESTIMATED


def singles(job: Job) -> list[Recipe]:
    """The members as they are, in the pool's order."""
    return [Recipe.single(k, len(job.pool)) for k in range(len(job.pool))]


def reestimated(job: Job) -> list[Recipe]:
    """The members that were evaluated with their BatchNorm statistics estimated again, first evaluated first."""
    entries = job.ledger.entries(REESTIMATED, VALIDATION)
    return [Recipe.from_json(entry.recipe, job.pool.fingerprints) for entry in entries]


def on(found: Answer, choose: Indices | None, metric: Metric) -> Answer:
    """An evaluation on the examples that decide; None: all of them."""
    if choose is None:
        return found
    if found.numbers is None:  # outputs that were not finite
        return replace(found, examples=len(choose))
    return answer_from_numbers(metric, found.numbers[choose], found.seconds, found.data)


def utility(job: Job, recipe: Recipe, choose: Indices | None) -> float:
    """How good a member is on the examples that decide, higher is better; -inf where it is not known."""
    found = job.known(recipe)
    return -np.inf if found is None else job.metric.utility(on(found, choose, job.metric).score)


def best_of(job: Job, recipes: Sequence[Recipe], choose: Indices | None) -> Recipe:
    """The best of some members on the examples that decide, of equals the first by content."""
    prints = job.pool.fingerprints
    return min(recipes, key=lambda recipe: (-utility(job, recipe, choose), prints[recipe.members[0]]))


def to_beat(job: Job, choose: Indices | None) -> Recipe:
    """The better of the best single member as it is and the best that was re-estimated, of equals the former."""
    top, again = best_of(job, singles(job), choose), reestimated(job)
    best = best_of(job, again, choose) if again else top
    return best if utility(job, best, choose) > utility(job, top, choose) else top


def main_member(job: Job, soup: Recipe, choose: Indices | None) -> int:
    """The member with the largest ratio in a soup, of equals the best."""
    most = max(soup.weights)
    equal = [Recipe.single(k, len(job.pool)) for k in soup.members if soup.weights[k] == most]
    return best_of(job, equal, choose).members[0]


def reestimate(job: Job, engine: Engine, member: int) -> None:
    """Evaluate a member with its BatchNorm statistics estimated again, if soups' are; once, then it is in the ledger.

    Raises RunError when it cannot be evaluated.
    """
    recipe = Recipe.single(member, len(job.pool), reestimated=True)
    if not job.calibrated or job.known(recipe) is not None:
        return
    started = time.monotonic()
    job.report(f"evaluating {job.names[member]}, its BatchNorm statistics re-estimated")
    engine.submit(Question(recipe))
    ((_, answer),) = engine.wait()
    if isinstance(answer, Failure):
        raise RunError(
            f"{job.names[member]} could not be evaluated with its BatchNorm statistics re-estimated. {answer.message}"
        )
    job.add(recipe, VALIDATION, answer)
    job.spent("re-estimation", time.monotonic() - started)

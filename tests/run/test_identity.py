"""A metric's identity is that of its code: what changes a score changes it, and nothing else does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from types import ModuleType

import numpy as np
import pytest
import torch

import radin
from radin import metrics
from radin.run.identity import code_identity, metric_identity


def made(source: str, name: str = "metric", **globals_: object):
    """The function that this source defines, as a task file would."""
    names = {"__name__": "task", **globals_}
    exec(compile(textwrap.dedent(source), "task.py", "exec"), names)
    return names[name]


PLAIN = """
import torch

SCALE = 2.0
HELD = {"weights": [0.5, 0.25]}

def helper(x, power=2):
    return (x**power).mean()

class Scorer:
    floor = 0.1
    def __call__(self, outputs, targets):
        return self.score(outputs)
    def score(self, outputs):
        return max(self.floor, float(outputs.mean()))

def metric(outputs, targets, *, top=1):
    difference = outputs - targets
    try:
        found = helper(difference) * SCALE + HELD["weights"][0]
    except ValueError:
        found = 0.0
    return sum(float(x) for x in [found] if x > 0.5) + Scorer()(outputs, targets)
"""


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("SCALE = 2.0", "SCALE = 2.5"),
        ("SCALE = 2.0", "SCALE = 2"),
        ("0.25]", "0.26]"),
        ("power=2", "power=3"),
        ("(x**power).mean()", "(x**power).sum()"),
        ("(x**power)", "(x*power)"),
        ("top=1", "top=2"),
        ("found = 0.0", "found = 1.0"),
        ("x > 0.5", "x > 0.6"),
        ("x > 0.5", "x >= 0.5"),
        ("floor = 0.1", "floor = 0.2"),
        ("max(self.floor", "min(self.floor"),
        ("except ValueError", "except TypeError"),
        ("outputs - targets", "targets - outputs"),
        ('HELD["weights"]', 'HELD["others"]'),
    ],
)
def test_what_changes_a_score_changes_it(was, now):
    assert was in PLAIN
    assert code_identity(made(PLAIN)) != code_identity(made(PLAIN.replace(was, now)))


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("difference", "error_of_each"),
        ("    found = 0.0", "    # nothing to say\n\n        found = 0.0"),
        ("def helper(x, power=2):", 'def helper(x, power=2):\n    """What it does."""'),
        ("def metric(outputs, targets, *, top=1):", 'def metric(outputs, targets, *, top=1):\n    """A metric."""\n'),
        ("class Scorer:", 'class Scorer:\n    """Scores."""'),
        ("import torch", "import torch\n\n\n"),
        ("SCALE = 2.0", "SCALE = 2.0\nUNUSED = 5"),
        ("for x in [found] if x > 0.5", "for number in [found] if number > 0.5"),
        ("(x**power).mean()", "(\n        x ** power\n    ).mean()"),
    ],
)
def test_what_does_not_change_a_score_does_not(was, now):
    assert was in PLAIN
    changed = PLAIN.replace(was, now)
    if "number" in now:
        changed = changed.replace("float(x)", "float(number)")
    assert code_identity(made(PLAIN)) == code_identity(made(changed))


def test_a_docstring_moves_no_constant():
    bare = "def metric(outputs, targets):\n    if outputs: return None\n    return 3.5"
    told = 'def metric(outputs, targets):\n    """None and 3.5."""\n    if outputs: return None\n    return 3.5'
    assert made(bare).__code__.co_consts != made(told).__code__.co_consts
    assert code_identity(made(bare)) == code_identity(made(told))


def test_closures_count_by_value():
    def scaled(by, names=("a",)):
        def metric(outputs, targets):
            return float(outputs.mean()) * by if names else 0.0

        return metric

    assert code_identity(scaled(2)) == code_identity(scaled(2))
    assert code_identity(scaled(2)) != code_identity(scaled(3))
    assert code_identity(scaled(2)) != code_identity(scaled(2, ()))
    assert code_identity(scaled(lambda: 1)) != code_identity(scaled(lambda: 2))


@pytest.mark.parametrize("array", [np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([1, 2])])
def test_arrays_count_by_content(array):
    source = "def metric(outputs, targets):\n    return WEIGHTS.sum()"
    same, other = made(source, WEIGHTS=array + 0), made(source, WEIGHTS=array + 1)
    assert code_identity(made(source, WEIGHTS=array)) == code_identity(same)
    assert code_identity(same) != code_identity(other)


def test_partials_methods_and_callable_objects():
    def f(outputs, targets, beta=1.0):
        return beta

    def g(outputs, targets, beta=1.0):
        return -beta

    prints = [code_identity(functools.partial(h, **given)) for h in (f, g) for given in ({}, {"beta": 2}, {"beta": 3})]
    assert len(set(prints)) == 6
    assert code_identity(functools.partial(f, beta=2)) == prints[1]

    kinds = [made(PLAIN.replace("floor = 0.1", f"floor = {floor}"), "Scorer") for floor in (0.1, 0.1, 0.3)]
    first, same, other = (code_identity(kind()) for kind in kinds)
    assert first == same != other
    tuned = kinds[0]()
    tuned.threshold = 0.4
    assert code_identity(tuned) != first
    assert code_identity(tuned.score) != code_identity(kinds[0]().score)
    assert code_identity(kinds[0]().score) == code_identity(kinds[1]().score)


def test_a_cached_function_is_what_it_wraps():
    cached = [made(f"import functools\n@functools.cache\ndef metric(o, t): return {k}") for k in (1, 1, 2)]
    cached[0](1, 2)
    first, same, other = map(code_identity, cached)
    assert first == same != other


def test_what_is_installed_goes_by_its_name():
    assert code_identity(torch.nn.functional.cross_entropy) == code_identity(torch.nn.functional.cross_entropy)
    assert code_identity(torch.nn.functional.cross_entropy) != code_identity(torch.nn.functional.nll_loss)
    assert code_identity(max) != code_identity(min)
    assert code_identity(np.maximum) != code_identity(np.minimum)
    source = "def metric(o, t): return score(o)"
    prints = {code_identity(made(source, score=score)) for score in (max, min, torch.mean, np.mean)}
    assert len(prints) == 4


def test_a_module_of_the_users_own_counts_by_what_is_used_of_it(tmp_path):
    def with_module(scale, unused):
        module = ModuleType("my_scores")
        module.__file__ = str(tmp_path / "my_scores.py")
        exec(f"def score(x): return x * {scale}\ndef other(x): return {unused}", vars(module))
        return code_identity(made("def metric(o, t): return my_scores.score(o)", my_scores=module))

    assert with_module(2, 1) == with_module(2, 5)
    assert with_module(2, 1) != with_module(3, 1)


def test_rings_come_to_an_end():
    ring = """
    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and even(n - {step})
    LIST = []
    LIST.append(LIST)
    def metric(outputs, targets): return even(len(outputs)) and LIST and metric
    """
    one, same, other = (code_identity(made(ring.format(step=step))) for step in (1, 1, 2))
    assert one == same != other


def test_the_order_of_a_set_or_a_dictionary_does_not_count():
    source = "def metric(o, t): return o in HELD"
    words = [f"word{k}" for k in range(20)]
    assert code_identity(made(source, HELD=set(words))) == code_identity(made(source, HELD={*reversed(words)}))
    forward, backward = dict.fromkeys(words, 1), dict.fromkeys(words[::-1], 1)
    assert code_identity(made(source, HELD=forward)) == code_identity(made(source, HELD=backward))
    assert code_identity(made(source, HELD=forward)) != code_identity(made(source, HELD=set(words)))


def test_it_is_the_same_in_another_process(tmp_path):
    (tmp_path / "task.py").write_text(PLAIN)
    code = "import task; from radin.run.identity import code_identity; print(code_identity(task.metric))"
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert found == {code_identity(made(PLAIN))}


@pytest.mark.parametrize("name", [*metrics.names(), "top-3", "top5", "top1"])
def test_radins_own_metrics_go_by_their_name(name):
    assert metric_identity(metrics.get(name)) == metrics.get(name).name


def test_a_users_function_is_its_name_and_its_code():
    one, same, other = (metrics.get(made(PLAIN.replace("2.0", s)), True) for s in ("2.0", "2.0", "2.1"))
    assert metric_identity(one) == metric_identity(same) != metric_identity(other)
    assert metric_identity(one).startswith("metric:")
    assert metric_identity(one) != metric_identity(metrics.get(made(PLAIN), False))


def test_a_metric_of_the_users_that_takes_the_name_of_one_of_radins():
    def per_example(outputs, targets):
        return (outputs.argmax(axis=1) == targets) * 0.5

    mine = metrics.mean_metric("accuracy", per_example, higher_is_better=True, targets="classes")
    assert metric_identity(mine).startswith("accuracy:")
    theirs = radin.Metric("wer", False, "any", lambda outputs, targets: 1.0)
    other = radin.Metric("wer", False, "any", lambda outputs, targets: 2.0)
    assert metric_identity(theirs) != metric_identity(other)

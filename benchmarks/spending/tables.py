"""Results as markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.spending.play import Facts
from benchmarks.spending.results import Estimate, Results, below_best_single, numbers, reach
from benchmarks.spending.strategies import OURS

_NOTE = f"""Budget B: passes over validation spent on soups (a part of the examples counts as a part of a pass, and
re-estimating BatchNorm's statistics as the calibration examples it takes), beside one pass for each member's outputs.
The best single member is always in the running. "Ours" is the strategy `{OURS}`, run anew for each B; the others ask
the same whatever B is. Recipes are chosen on validation alone; test and shifts are looked at for what was chosen.
± is one standard error over sub-pools, which share members and data. Four constants of ours (the two shares of loss
expected, the softening, the sizes of slices) were set by looking at validation scores of some of these sub-pools."""


def scores(results: Results) -> str:
    """Validation / test for each strategy and budget of the grid."""
    lines = [_head(["strategy", *(f"B = {b}" for b in results.grid), "passes spent"])]
    for strategy in results.strategies:
        cells = [
            f"{_accuracy(results.mean(strategy, 'validation', b))} / {_accuracy(results.mean(strategy, 'test', b))}"
            for b in results.grid
        ]
        lines.append(_row([strategy, *cells, f"{results.mean(strategy, 'spent', results.most).mean:.1f}"]))
    return "\n".join(lines)


def shifts(results: Results) -> str:
    """The mean over the shift sets, for each strategy and budget of the grid."""
    lines = [_head(["strategy", *(f"B = {b}" for b in results.grid)])]
    for strategy in results.strategies:
        lines.append(_row([strategy, *(_accuracy(results.mean(strategy, "shifts", b)) for b in results.grid)]))
    return "\n".join(lines)


def differences(results: Results, field: str) -> str:
    """Ours minus each strategy in percentage points: mean over B = 1..8, and at each budget of the grid."""
    early = results.early
    budgets = [[b] for b in results.grid]
    first = [] if field == "shifts" else [early]
    heads = [f"mean of B = 1..{early[-1]}"] if first else []
    lines = [_head(["ours minus", *heads, *(f"B = {b}" for b in results.grid)])]
    for strategy in results.strategies:
        if strategy != "ours":
            cells = [_points(results.difference(strategy, field, at)) for at in [*first, *budgets]]
            lines.append(_row([strategy, *cells]))
    return "\n".join(lines)


def report(title: str, everything: Results, facts: Sequence[Facts]) -> str:
    """The whole report of one pool, or of the mean over several."""
    lines = [f"# {title}", "", _NOTE, ""]
    for fact in facts:
        lines += [_described(fact), ""]
    sub, whole = everything.parts()
    if sub is not None:
        counts = ", ".join(f"{len(sub.subpools(pool))} of {pool}" for pool in sub.pools)
        sizes = " or ".join(str(n) for n in sorted({p.members for p in sub.points}))
        lines += [f"## Sub-pools of {sizes} members: {counts}", "", "Validation / test.", "", scores(sub), ""]
        if "ours" in sub.strategies:
            lines += [*_against(sub), ""]
        if sub.shifts:
            lines += ["Mean over the shift sets.", "", shifts(sub), ""]
            if "ours" in sub.strategies:
                lines += ["Shifts, percentage points.", "", differences(sub, "shifts"), ""]
    if whole is not None:
        lines += [f"## The whole pool{'s' if len(whole.pools) > 1 else ''}", "", "Validation / test.", ""]
        lines += [scores(whole), ""]
        if "ours" in whole.strategies:
            lines += [f"Ours below the best single member on validation: {below_best_single(whole)} times.", ""]
    return "\n".join(lines)


def _against(results: Results) -> list[str]:
    lines = []
    for field in ("validation", "test"):
        lines += [f"Ours minus each, {field}, percentage points, paired.", "", differences(results, field), ""]
    found = numbers(results)
    if found["vs_paper_radin_pp"] is not None:
        error = "" if found["vs_paper_radin_se_pp"] is None else f" ± {found['vs_paper_radin_se_pp']:.3f}"
        lines.append(
            f"* Against the paper's RADIN, the better lambda on test, mean of B = 1..{results.early[-1]}: "
            f"{found['vs_paper_radin_pp']:+.3f}{error} points."
        )
    lines.append(
        f"* Largest deficit on validation, to any strategy at any B: {found['worst_vs_any_validation_pp']:.3f} points."
    )
    greedy = reach(results)
    if greedy is not None:
        lines.append(
            f"* Greedy's (strict) final validation score is reached within {greedy.fraction:.3f} of greedy's passes "
            f"(mean over sub-pools; in {greedy.reached:.0%} of them by B = {results.most}, which is what the others "
            f"count); its mean is reached by our mean within "
            f"{'no budget' if greedy.of_means is None else f'{greedy.of_means:.3f}'}."
        )
    if found["below_best_single"] is not None:
        lines.append(f"* Below the best single member on validation: {found['below_best_single']} times.")
    return lines


def _described(fact: Facts) -> str:
    lines = [
        f"{fact.pool}: {fact.members} distinct members, {fact.examples} validation examples "
        f"(standard error of one score about {fact.stderr:.4f}), {fact.calibration} calibration, {fact.tests} test. "
        f"Values here differ from `radin evaluate`'s on {fact.differing:.2%} of the examples at most, over "
        f"{fact.checked} soups. One pass takes {fact.pass_seconds:.2f} s of one processor.",
    ]
    for what, (largest, mean, first) in fact.thinking.items():
        lines.append(
            f"Ours thinks between two evaluations, on {what}, at most {largest:.1%} of a pass, {mean:.1%} on average; "
            f"before its first, {first:.1%}."
        )
    return "\n".join(lines)


def _head(cells: Sequence[str]) -> str:
    return _row(cells) + "\n" + "|---" * len(cells) + "|"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _accuracy(value: Estimate) -> str:
    return f"{value.mean:.4f}" + ("" if math.isnan(value.stderr) else f" ± {value.stderr:.4f}")


def _points(value: Estimate) -> str:
    return f"{value.mean:+.2f}" + ("" if math.isnan(value.stderr) else f" ± {value.stderr:.2f}")

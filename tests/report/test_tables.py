"""The closing table and the lines under it, from a result made by hand."""

import io
import json
from pathlib import Path

from rich.console import Console

from made import result, scored
from radin.recipe import Recipe
from radin.report.tables import (
    closing_lines,
    closing_rows,
    closing_sentences,
    closing_table,
    evaluated_table,
    ranked_table,
)
from radin.run.commands import Evaluated, EvaluatedMember, RankedFiles
from radin.run.reasons import Outlier, Reasons
from radin.search.ranking import RankedRecipe
from radin.stats.paired import unpaired_difference


def test_every_look_has_a_column_and_every_model_a_row():
    title, columns, rows = closing_rows(result())
    assert title == "accuracy (higher is better), 100 validation examples"
    assert columns == ["", "members", "validation", "test", "noisy", "wer"]
    assert rows == [
        ["best single", "1", "0.8000 ± 0.0100", "0.8100 ± 0.0200", "0.7000 ± 0.0300", "0.2000 ± 0.0100"],
        ["uniform soup", "4", "(0.8500)", "0.8100 ± 0.0200", "0.7000 ± 0.0300", "–"],
        ["chosen soup", "2", "0.8400 ± 0.0100", "0.8100 ± 0.0200", "0.7000 ± 0.0300", "0.1000 ± 0.0100"],
        ["logit ensemble", "2", "0.8600 ± 0.0100", "–", "–", "–"],
    ]


def test_a_run_without_outputs_has_no_ensemble_and_no_brackets():
    found = result(ensemble=None, uniform=scored("uniform soup", Recipe.uniform(range(4), 4), None, estimate=None))
    _, _, rows = closing_rows(found)
    assert [row[0] for row in rows] == ["best single", "uniform soup", "chosen soup"]
    assert rows[1][2] == "–"
    assert not any("in brackets" in line for line, _ in closing_sentences(found))


def test_a_soup_that_diverged_is_no_estimate():
    found = result(uniform=scored("uniform soup", Recipe.uniform(range(4), 4), float("nan")))
    assert closing_rows(found)[2][1][2] == "–"


def test_what_was_chosen_is_named():
    single = result(best=result().best_single, paired=None, reasons=Reasons(outliers=(Outlier("a", 3.0),), soups=1))
    assert closing_rows(single)[2][2][0] == "chosen: the best single"
    lines = [line for line, _ in closing_sentences(single)]
    assert "no soup beat the best single member: the result is that member" in lines
    assert "likely reason: outliers, in times the median distance to the members' mean: a (3.0 times)" in lines
    uniform = result(best=scored("uniform", Recipe.uniform(range(4), 4), 0.9))
    assert closing_rows(uniform)[2][2][0] == "chosen: the uniform soup"


def test_lines_in_order_and_the_warning_is_marked():
    noisy = result(paired=unpaired_difference((0.84, 0.05), (0.8, 0.05), 100, True))
    lines = closing_sentences(noisy)
    starts = ["(in brackets", "gain over", "warning: inside", "expected on", "members: a 0.25, c 0.75", "passes over"]
    for start, (line, _) in zip(starts, lines, strict=False):
        assert line.startswith(start)
    assert [line.split(":")[0] for line, _ in lines[6:]] == ["time", "note", "soup"]
    assert [warns for _, warns in lines] == [False, False, True, False, False, False, False, False, False]
    assert "time: 3.5 s (open 0.2 s)" in [line for line, _ in lines]


def test_names_with_markup_come_out_as_they_are():
    found = result(member_names=("[bold]a", "b", "c", "d"), metric="[red]")
    console = Console(file=io.StringIO(), width=160)
    for part in (closing_table(found), *closing_lines(found)):
        console.print(part, markup=False)
    assert "members: [bold]a 0.25" in console.file.getvalue()


def shown(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_what_evaluate_and_rank_show_and_their_json():
    members = (
        EvaluatedMember("a", Path("a.pt"), "f" * 64, 0.5, 0.01, 1.25),
        EvaluatedMember("b", Path("b.pt"), "e" * 64, float("nan"), float("nan"), 1.0),
    )
    evaluated = Evaluated("accuracy", "test", 20, "d" * 64, members)
    lines = shown(evaluated_table(evaluated))
    assert lines[0] == "accuracy on test, 20 examples"
    assert {"a 0.5000 ± 0.0100 1.2", "b – 1.0"} <= set(lines)
    found = json.loads(json.dumps(evaluated.to_json(), allow_nan=False))
    assert found["members"][1] | {"fingerprint": ""} == {
        "name": "b",
        "path": "b.pt",
        "fingerprint": "",
        "score": None,
        "stderr": None,
        "seconds": 1.0,
    }
    recipe = RankedRecipe(Recipe((0.25, 0.75)), 0.875, 2, "random")
    ranked = RankedFiles("accuracy", True, ("a", "b"), ("b", 0.5), (recipe,))
    assert "1 0.87500 2 random a 0.25, b 0.75" in shown(ranked_table(ranked))
    assert ranked.to_json()["recipes"][0]["recipe"]["members"][1] == {"name": "b", "fingerprint": "b", "weight": 0.75}

"""What the demo shows, from results made by hand."""

import io
from dataclasses import replace

from rich.console import Console

from made import result, scored
from radin.demo.run import _shown
from radin.recipe import Recipe


def test_the_three_ways_are_compared_at_their_passes():
    greedy = result(
        best=scored("greedy", Recipe.uniform((0, 1, 2), 4), 0.83, splits=result().best.splits),
        passes=replace(result().passes, soups=3.0),
    )
    console = Console(file=io.StringIO(), width=200)
    for part in _shown(result(), greedy, {"training": 12.0, "total": 20.0}):
        console.print(part)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    splits = "0.8100 ± 0.0200 0.7000 ± 0.0300"
    assert f"best single 1 0.8000 ± 0.0100 {splits} 4" in lines
    assert f"greedy 3 0.8300 ± 0.0100 {splits} 7" in lines
    assert f"adaptive, the default 2 0.8400 ± 0.0100 {splits} 6.5" in lines
    assert any(line.startswith("whole demo: 20 s, of which training 12 s") for line in lines)

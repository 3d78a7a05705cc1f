"""radin metrics: what a soup can be scored by."""

from __future__ import annotations

import click

from radin.cli.shared import JSON, show, starting

_LINES = (
    "top-K accuracy is there for every K (top3, top-10); a task may give a radin.Metric of its own (docs/metrics.md)",
    "a mean over examples can be told from some of them, so a soup may be partly evaluated; it has a paired interval",
)


@click.command()
@JSON
def metrics(as_json: bool) -> None:
    """The metrics that have a name, which direction is better, and the targets they need."""
    with starting():
        from radin import metrics as known
        from radin.report.tables import plain_table

    found = [known.get(name) for name in known.names()]
    value = {
        metric.name: {
            "higher_is_better": metric.higher_is_better,
            "targets": metric.targets,
            "mean_over_examples": metric.per_example is not None,
            "about": metric.about,
        }
        for metric in found
    }
    rows = [
        [
            metric.name,
            "higher" if metric.higher_is_better else "lower",
            known.TARGET_KINDS[metric.targets],
            "yes" if metric.per_example is not None else "no",
            metric.about,
        ]
        for metric in found
    ]
    columns = ["name", "better", "targets", "mean over examples", "what it is"]
    show(value if as_json else None, plain_table("metrics", columns, rows), *_LINES)

"""Curves of validation and test against the budget."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from benchmarks.spending.results import Results

_SHOWN = {
    "ours": ("#c0392b", "-"),
    "RADIN, lambda 0": ("#2c6fbb", "-"),
    "RADIN, lambda 1": ("#2c6fbb", "--"),
    "greedy, strict": ("#2e8b57", "-"),
    "greedy on logits": ("#2e8b57", "--"),
    "top-k": ("#8e6bb0", "-"),
    "pruned": ("#333333", "-"),
    "CMA-ES": ("#d68910", "-"),
    "best single": ("#777777", ":"),
}


def curves(results: Results, title: str, path: Path) -> None:
    """One panel for validation, one for test; bands of one standard error over sub-pools."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "radin", "font.size": 9})
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
    budgets = np.arange(1, results.most + 1)
    for panel, field in zip(axes, ("validation", "test"), strict=True):
        for strategy, (colour, style) in _SHOWN.items():
            if strategy not in results.strategies:
                continue
            found = [results.mean(strategy, field, int(b)) for b in budgets]
            mean, error = np.array([f.mean for f in found]), np.nan_to_num([f.stderr for f in found])
            width = 2.0 if strategy == "ours" else 1.2
            if strategy == "best single":
                panel.autoscale(False, axis="y")  # it may lie far below all others
            else:
                panel.fill_between(budgets, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
            hidden = mean.max() < panel.get_ylim()[0] and strategy == "best single"
            label = f"{strategy} (below)" if hidden else strategy
            panel.plot(budgets, mean, style, color=colour, label=label, linewidth=width)
        panel.set(title=f"{title}: {field}", xlabel="B, passes spent on soups", ylabel="accuracy")
        panel.set_xlim(1, results.most)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

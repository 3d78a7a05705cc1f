"""What came out of a run, as values, with a JSON form that gives the same values back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from radin.checks import misfits
from radin.checksums import opened
from radin.disks import url_of
from radin.errors import RadinError, RunError
from radin.files import read_json, replacing, replacing_folder, told
from radin.recipe import Recipe
from radin.run.reasons import Reasons
from radin.stats.optimism import ExpectedGain, Optimism, expected_gain
from radin.stats.paired import PairedDifference
from radin.weights import open_checkpoint, read_metadata, save
from radin.weights.alike import require_replaceable
from radin.weights.remote import is_url
from radin.weights.saving import SAVE_SUFFIXES
from radin.weights.uploads import upload

SplitScores = Mapping[str, tuple[float, float]]
_NAN = float("nan")
_SHIFTS = "shifts/"


@dataclass(frozen=True)
class Scored:
    """A recipe with what is known of it.

    score, stderr: on validation, in the metric's units; None when its soup was never evaluated. estimate: the score of
    its averaged outputs, None where there are none. splits: split ("test", "shifts/NAME") -> (score, stderr) where it
    was evaluated. further: the same for further sets that a program scored, by name.
    """

    name: str
    recipe: Recipe
    score: float | None
    stderr: float | None
    estimate: float | None = None
    seconds: float | None = None
    splits: SplitScores = field(default_factory=dict)
    further: SplitScores = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """Passes over validation: made for the members by this session, and spent on soups by all (the budget's).

    members: 0 when all their outputs were there already. reestimated: members evaluated once more, by all sessions,
    with their BatchNorm statistics estimated again; these are in no budget. started: soups evaluated on any example;
    one that is partly evaluated costs its share of a pass. failed: questions that got no answer.
    """

    members: int
    soups: float
    budget: int
    started: int
    failed: int = 0
    reestimated: int = 0

    @property
    def total(self) -> float:
        """Of members, re-estimated or not, and soups."""
        return self.members + self.reestimated + self.soups


@dataclass(frozen=True)
class Gain:
    """The best soup against the single member it has to beat on validation: difference and its standard error."""

    difference: float
    stderr: float


@dataclass(frozen=True)
class Result:
    """A finished run. ``best`` is what ``soup`` holds; never worse on validation than best_single and reestimated.

    best_single: the best member as it is. reestimated: the best of those that were evaluated with their BatchNorm
    statistics estimated again, as every soup's are; None where statistics are not. reestimation: its difference to
    best_single. gain, paired: the soup against the better of these two (``reference``), so what averaging gives.
    examples: those that scores are over; where validation was halved, the half that chose, and ``searched`` the number
    of the others. ensemble: averaged outputs, None where a run has no outputs. evaluations: the fully evaluated soups.
    paired: the gain with its interval, None where a single member was chosen. optimism: the selection bias of
    the score, None for metrics that are no mean over examples. reasons: why no soup won, None where one did.

    out: the run directory. soup_name: of the soup in it. metric, higher_is_better: what scores are, and which are
    better. member_names, fingerprints: of the members, (N,), in the pool's order. uniform: the average of all members;
    its score is None where it was not evaluated. passes: over validation, spent on members and soups. strategy: its
    name and options. seconds: of each stage. notes: what the user should know, in sentences. versions: of radin,
    Python and libraries.
    """

    out: Path
    metric: str
    higher_is_better: bool
    examples: int
    member_names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    best: Scored
    best_single: Scored
    uniform: Scored
    ensemble: Scored | None
    gain: Gain
    paired: PairedDifference | None
    optimism: Optimism | None
    evaluations: tuple[Scored, ...]
    passes: Passes
    strategy: Mapping[str, Any]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    reasons: Reasons | None
    versions: Mapping[str, str]
    searched: int | None = None
    soup_name: str = "soup.safetensors"
    reestimated: Scored | None = None
    reestimation: PairedDifference | None = None

    @property
    def reference(self) -> Scored:
        """The single member that a soup has to beat: as it is, or re-estimated where that is better."""
        again = self.reestimated
        if again is None or again.score is None or self.best_single.score is None:
            return self.best_single
        lead = again.score - self.best_single.score
        return again if (lead > 0) == self.higher_is_better and lead != 0 and lead == lead else self.best_single

    @property
    def expected_gain(self) -> ExpectedGain | None:
        """The gain to expect on new data; None where a single member was chosen, or the bias is not known."""
        if self.paired is None or self.optimism is None:
            return None
        return expected_gain(self.paired, self.optimism)

    @property
    def soup(self) -> Path:
        """The file that holds the soup; a folder where a program's members are folders."""
        return self.out / self.soup_name

    @property
    def confidence(self) -> tuple[str, ...]:
        """How sure the gain is, and where it comes from, in sentences; none where the best single was chosen."""
        from radin.report.sentences import confidence

        return confidence(self)

    def __str__(self) -> str:
        """The table that ends a run, with the lines under it."""
        from radin.report.tables import closing_text

        return closing_text(self)

    def _repr_html_(self) -> str:
        from radin.report.html import result_html

        return result_html(self)

    def plot_budget(self) -> Any:
        """Score by budget beside greedy, top-k and the uniform soup (the paper's Figure 4): a chart of Altair.

        A notebook shows it; ``.save("budget.svg")``, or png, html, json, writes it without a browser. The same holds
        for the other plots. Raises RadinError where the run cannot show it, or Altair is missing.
        """
        return self._figure("4")

    def plot_estimates(self) -> Any:
        """Estimate against truth of the soups evaluated, their size marked (the paper's Figure 2): as plot_budget."""
        return self._figure("2")

    def plot_candidates(self) -> Any:
        """Candidates by rank of their estimate, those evaluated marked (the paper's Figure 3): as plot_budget."""
        return self._figure("3")

    def plot_sizes(self) -> Any:
        """Score by number of members (the paper's Figure 6): as plot_budget."""
        return self._figure("6")

    def _figure(self, number: str) -> Any:
        from radin.report.notebook import figure

        return figure(self, number)

    def to_pandas(self) -> Any:
        """A DataFrame: a row for each model reported, then for each soup evaluated, with scores and mixing ratios.

        Raises RadinError where pandas is missing.
        """
        from radin.report.notebook import frame

        return frame(self)

    def reordered(self, order: Sequence[int]) -> Result:
        """The same result over the members in another order: new place i holds the member that was at ``order[i]``."""

        def moved(value: Any) -> Any:
            if isinstance(value, Scored):
                return replace(value, recipe=value.recipe.permuted(order))
            return tuple(map(moved, value)) if isinstance(value, tuple) else value

        scored = {name: moved(value) for name, value in vars(self).items()}
        names, prints = ([values[k] for k in order] for values in (self.member_names, self.fingerprints))
        return replace(self, **scored | {"member_names": tuple(names), "fingerprints": tuple(prints)})

    def save(self, path: str | Path) -> Path | str:
        """Copy the soup to ``path``, with the ending that it has; a folder also into one file. Returns the place.

        A URL such as "s3://bucket/soup.safetensors" is uploaded to. Raises RunError for another ending.
        """
        if is_url(path):
            with TemporaryDirectory(prefix="radin-") as folder:
                local = self.save(Path(folder) / PurePosixPath(str(path)).name)
                return upload(Path(local), str(path), force=True)
        target = Path(path)
        if (url := url_of(target)) is not None:
            raise RunError(f"{path} was a URL and is a path now: give it as text, {url!r}")
        if self.soup.is_dir() and target.suffix in SAVE_SUFFIXES:
            return self._save_file(target)
        if target.suffix != self.soup.suffix:
            ending = f"a {self.soup.suffix} file" if self.soup.suffix else "a folder"
            raise RunError(f"the soup is {ending}; {target} must end in {self.soup.suffix or 'no suffix'}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with told(target):
            if self.soup.is_dir():
                require_replaceable(target)
                with replacing_folder(target) as temporary:
                    shutil.copytree(self.soup, temporary, dirs_exist_ok=True)
            else:
                with replacing(target) as temporary:
                    shutil.copyfile(self.soup, temporary)
        return target

    def _save_file(self, target: Path) -> Path:
        held = open_checkpoint(self.soup)
        target.parent.mkdir(parents=True, exist_ok=True)
        with held.open() as reader:
            kept = {name: reader[name] for name in held.names if name not in held.aliases}
            tensors = {name: kept[held.aliases.get(name, name)] for name in held.names}
            save(tensors, target, metadata=read_metadata(self.soup))
        return target

    @classmethod
    def load(cls, directory: str | Path) -> Result:
        """The result of a finished run, from its directory. Raises RunError when there is none, or it is damaged."""
        path = Path(directory) / "result.json"
        if not path.is_file():
            if (path.parent / "run.json").is_file():
                raise RunError(
                    f"the run in {directory} has not finished: there is no result.json. 'radin status {directory}' "
                    "says how far it is; the command that began it goes on where it stopped"
                )
            raise RunError(
                f"no finished run in {directory}: there is no result.json. Give the folder that was cook's --out"
            )
        try:
            value = opened(read_json(path))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}); run 'radin cook' again to rewrite it") from None
        return cls.from_json(value, Path(directory))

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""
        return {
            "metric": {"name": self.metric, "higher_is_better": self.higher_is_better},
            "examples": self.examples,
            "searched": self.searched,
            "best": self._scored(self.best),
            "best_single": self._scored(self.best_single),
            "reestimated": None if self.reestimated is None else self._scored(self.reestimated),
            "reestimation": None if self.reestimation is None else _paired(self.reestimation),
            "uniform": self._scored(self.uniform),
            "ensemble": None if self.ensemble is None else self._scored(self.ensemble),
            "gain": self._gain(),
            "optimism": None if self.optimism is None else _numbers(vars(self.optimism)),
            "confidence": list(self.confidence),
            "passes": {**vars(self.passes), "total": self.passes.total},
            "evaluations": [self._scored(e) for e in self.evaluations],
            "test": self._on("test"),
            "shifts": {
                split.removeprefix(_SHIFTS): self._on(split) for split in self.best.splits if split.startswith(_SHIFTS)
            },
            "further": {name: self._on(name, further=True) for name in self.best.further},
            "strategy": dict(self.strategy),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "reasons": None if self.reasons is None else self.reasons.to_json(),
            "versions": dict(self.versions),
            "soup": str(self.soup),
        }

    @classmethod
    def from_json(cls, value: Any, out: Path | None = None) -> Result:
        """The result that ``to_json`` gave; ``out``: where the run is now, by default where it was.

        Raises RunError when a key is missing or not known, or a value is of another kind.
        """
        _require(value, _KEYS, "")
        try:
            found = _read(value, out)
            wrong = misfits(found)
            if wrong:
                raise RunError(f"this is no result of this version of radin: of another kind: {', '.join(wrong)}")
            return found
        except RunError:
            raise
        except (RadinError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"this is no result of this version of radin: {type(error).__name__}: {error}") from None

    def _gain(self) -> dict[str, Any]:
        found: dict[str, Any] = {"over": self.reference.name}
        found |= {"difference": self.gain.difference, "stderr": _number(self.gain.stderr)}
        if self.paired is not None:
            expected = self.expected_gain
            found |= _paired(self.paired) | {"expected": None if expected is None else _numbers(vars(expected))}
        return found

    def _scored(self, scored: Scored) -> dict[str, Any]:
        return {
            "name": scored.name,
            "recipe": scored.recipe.to_json(self.member_names, self.fingerprints),
            "size": scored.recipe.size,
            "score": _number(scored.score),
            "stderr": _number(scored.stderr),
            "estimate": _number(scored.estimate),
            "seconds": _number(scored.seconds),
        }

    def _on(self, name: str, *, further: bool = False) -> dict[str, Any] | None:
        """Scores of the models that are reported, on another split or on a further set."""
        shown = {"best_single": self.best_single, "uniform": self.uniform, "best": self.best}
        if self.reestimated is not None:
            shown["reestimated"] = self.reestimated
        scores = {key: scored.further if further else scored.splits for key, scored in shown.items()}
        pairs = {key: found[name] for key, found in scores.items() if name in found}
        return {key: {"score": _number(score), "stderr": _number(err)} for key, (score, err) in pairs.items()} or None


_KEYS = (
    *("metric", "examples", "searched", "best", "best_single", "reestimated", "reestimation", "uniform", "ensemble"),
    *("gain", "optimism", "confidence"),
    *("passes", "evaluations", "test", "shifts", "further", "strategy", "seconds", "notes", "reasons", "versions"),
    "soup",
)
_SCORED_KEYS = ("name", "recipe", "size", "score", "stderr", "estimate", "seconds")
_GAIN_KEYS = ("over", "difference", "stderr")
_PAIRED_KEYS = (*PairedDifference.__dataclass_fields__, "inside_noise")


def _read(value: Mapping[str, Any], out: Path | None) -> Result:
    _require(value["metric"], ("name", "higher_is_better"), "metric")
    _require(value["uniform"], _SCORED_KEYS, "uniform")
    members = value["uniform"]["recipe"]["members"]  # all of them, in the pool's order
    prints = tuple(str(member["fingerprint"]) for member in members)

    def scored(found: Any, where: str, key: str | None = None) -> Scored:
        _require(found, _SCORED_KEYS, where)
        recipe = Recipe.from_json(found["recipe"], prints)
        score, stderr = found["score"], found["stderr"]
        if found["seconds"] is not None:  # it was evaluated: what is not there was not a number
            score, stderr = _float(score), _float(stderr)
        known = (score, stderr, found["estimate"], found["seconds"])
        splits = {"test": value["test"], **{_SHIFTS + name: on for name, on in value["shifts"].items()}}
        return Scored(found["name"], recipe, *known, _split_scores(splits, key), _split_scores(value["further"], key))

    passes = value["passes"]
    _require(passes, (*Passes.__dataclass_fields__, "total"), "passes")
    gain, paired = value["gain"], None
    if set(gain) != set(_GAIN_KEYS):
        _require(gain, (*_PAIRED_KEYS, "over", "expected"), "gain")
        paired = _read_paired(gain)
    again, reestimation = value["reestimated"], value["reestimation"]
    if reestimation is not None:
        _require(reestimation, _PAIRED_KEYS, "reestimation")
    optimism = value["optimism"]
    if optimism is not None:
        _require(optimism, Optimism.__dataclass_fields__, "optimism")
        optimism = Optimism(**_floats(optimism, ("stderr",)))
    return Result(
        out=Path(value["soup"]).parent if out is None else out,
        soup_name=Path(value["soup"]).name,
        metric=value["metric"]["name"],
        higher_is_better=value["metric"]["higher_is_better"],
        examples=value["examples"],
        member_names=tuple(str(member["name"]) for member in members),
        fingerprints=prints,
        best=scored(value["best"], "best", "best"),
        best_single=scored(value["best_single"], "best_single", "best_single"),
        reestimated=None if again is None else scored(again, "reestimated", "reestimated"),
        reestimation=None if reestimation is None else _read_paired(reestimation),
        uniform=scored(value["uniform"], "uniform", "uniform"),
        ensemble=None if value["ensemble"] is None else scored(value["ensemble"], "ensemble"),
        gain=Gain(float(gain["difference"]), _float(gain["stderr"])),
        paired=paired,
        optimism=optimism,
        evaluations=tuple(scored(found, "evaluations") for found in value["evaluations"]),
        passes=Passes(**{name: passes[name] for name in Passes.__dataclass_fields__}),
        strategy=dict(value["strategy"]),
        seconds=dict(value["seconds"]),
        notes=tuple(value["notes"]),
        reasons=None if value["reasons"] is None else Reasons.from_json(value["reasons"]),
        versions=dict(value["versions"]),
        searched=value["searched"],
    )


def _paired(found: PairedDifference) -> dict[str, Any]:
    return _numbers(vars(found)) | {"inside_noise": found.inside_noise}


def _read_paired(value: Mapping[str, Any]) -> PairedDifference:
    found = {name: value[name] for name in PairedDifference.__dataclass_fields__}
    return PairedDifference(**_floats(found, ("stderr", "low", "high", "p_value")))


def _require(value: Any, keys: Any, where: str) -> None:
    """Raise RunError unless ``value`` is an object with exactly these keys."""
    place = f" its {where!r}" if where else ""
    if not isinstance(value, Mapping):
        raise RunError(f"this is no result of this version of radin:{place or ' it'} is no JSON object")
    missing, unknown = [k for k in keys if k not in value], [k for k in value if k not in set(keys)]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(map(str, unknown))}, which is not known"] if unknown else []
        raise RunError(f"this is no result of this version of radin:{place or ' it'} {' and '.join(parts)}")


def _split_scores(found: Mapping[str, Any], key: str | None) -> dict[str, tuple[float, float]]:
    """Where one of the models that are reported was evaluated: name -> (score, stderr)."""
    return {
        name: (_float(on[key]["score"]), _float(on[key]["stderr"]))
        for name, on in found.items()
        if key is not None and on is not None and key in on
    }


def _float(value: float | None) -> float:
    return _NAN if value is None else float(value)


def _floats(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The values with NaN, which JSON does not have, back in its place."""
    return {name: _float(value) if name in names else value for name, value in values.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in values.items()}


def _number(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity; neither is a result."""
    return None if value is None or not isfinite(value) else float(value)

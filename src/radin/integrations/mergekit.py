"""mergekit's YAML: a soup's recipe written as a linear merge, and such a file read as the recipe of an average."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radin.checksums import opened
from radin.errors import RadinError, printable
from radin.files import open_regular, read_json, told, write_text
from radin.recipe import Group, Recipe
from radin.run.card import of_folders
from radin.weights import Pool, read_recipe
from radin.weights.beside import files_source, folder_of
from radin.weights.layout import count, is_averaged, promote, short
from radin.weights.paths import absolute

_SUFFIXES = (".yml", ".yaml")
_BYTES = 2**20
_DEPTH = 20
# What a linear merge may say that radin does as mergekit does.
_KEYS = ("merge_method", "models", "parameters", "dtype", "out_dtype", "base_model", "tokenizer_source")
_CONDITIONS = 100_000

# A weight as the file has it: the first whose text is in a tensor's name holds, None being in each.
Setting = tuple[tuple[str | None, float], ...]


@dataclass(frozen=True)
class Linear:
    """A linear merge of local folders. weights: as they are in the file, a setting for each of ``paths``."""

    file: Path
    paths: tuple[str, ...]
    weights: tuple[Setting, ...]
    normalize: bool
    dtype: str | None
    files: str | None  # the model whose config and tokenizer the result gets, where one is named
    tokenizers: str | None  # "union": where tokenizers may not differ

    def recipe(self, pool: Pool) -> Recipe:
        """The same merge as a recipe over these models. Raises RadinError for what would not be the same."""
        found = short(promote(dtype for dtype in pool.dtypes.values() if is_averaged(dtype)))
        if self.dtype is not None and self.dtype != found:
            raise RadinError(
                f"{self.file}: asks for dtype {self.dtype}, and the models are {found}; radin averages in float64 and "
                "writes what the models have. Take dtype out of the file, and convert the soup if need be."
            )
        if self.tokenizers == "union":
            self._require_one_tokenizer(pool)
        stands_for = {_real(dropped): _real(kept) for dropped, kept in pool.duplicates}
        places = {_real(member.path): k for k, member in enumerate(pool)}
        members = [places[stands_for.get(path, path)] for path in map(_real, self.paths)]
        if all(setting[0][0] is None for setting in self.weights):
            return Recipe(self._shares("", members, len(pool)), affine=True)
        aliases = pool.aliases
        sizes = {name: count(shape) for name, shape in pool.shapes.items() if name not in aliases}
        return _by_tensor({name: self._shares(name, members, len(pool)) for name in sizes}, sizes)

    def _shares(self, tensor: str, members: Sequence[int], size: int) -> tuple[float, ...]:
        """The ratios of a tensor over a pool. members: which of it each path is."""
        shares = [0.0] * size
        for path, setting, member in zip(self.paths, self.weights, members, strict=True):
            weight = next((value for text, value in setting if text is None or text in tensor), None)
            if weight is None:
                raise RadinError(
                    f"{self.file}: {path} has no weight for the tensor {printable(tensor)}; end its list with a value "
                    "that has no filter"
                )
            shares[member] += weight
        total = sum(shares)
        if not self.normalize and abs(total - 1) > 1e-6:
            raise RadinError(f"{self.file}: normalize is false and the weights sum to {total:g}: not an average")
        return Recipe.normalized(shares, affine=True).weights  # a file of mergekit's says what it wants by the sign

    def files_from(self, pool: Pool) -> str | None:
        """The name of the member whose config and tokenizer the file asks for; None where it names none."""
        if self.files is None:
            return None
        for member in pool:
            if _real(member.path) == _real(self.files):
                return member.name
        raise RadinError(f"{self.file}: {self.files} gives config or tokenizer and is none of the models averaged")

    def _require_one_tokenizer(self, pool: Pool) -> None:
        notes = of_folders(pool, Recipe.uniform(range(len(pool)), len(pool)), None)
        differing = next((note for note in notes if not note.startswith(("config.json", "generation_config"))), None)
        if differing is not None:
            raise RadinError(
                f"{self.file}: tokenizer_source union, and the tokenizers are not the same ({differing}): rows of "
                "embeddings would have to be rearranged, which radin does not do"
            )


def _real(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())


def recipe_at(paths: Sequence[str]) -> Linear | None:
    """The merge that a command line's only path is the file of; None where it is no YAML. Raises RadinError."""
    files = [path for path in paths if path.lower().endswith(_SUFFIXES)]
    if not files:
        return None
    if len(paths) > 1:
        raise RadinError(f"{files[0]}: a recipe names its models itself; give no other paths")
    return _linear(Path(files[0]), _read(Path(files[0])))


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise RadinError("mergekit's files are YAML, and pyyaml is not installed: pip install pyyaml") from None
    return yaml


def _read(path: Path) -> Any:
    yaml = _yaml()
    with told(path, doing="read"):
        try:
            with open_regular(path) as file:
                data = file.read(_BYTES + 1)
        except ValueError as error:
            raise RadinError(f"{path}: {error}") from None
    if len(data) > _BYTES:
        raise RadinError(f"{path}: larger than {_BYTES:,} bytes, which no recipe is")
    try:
        text = data.decode("utf-8")
        # An alias stands for what was said before: a few lines of aliases of aliases would be gigabytes.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise RadinError(f"{path}: has YAML aliases (*name); write out what they stand for")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RadinError(f"{path}: no YAML: {' '.join(str(error).split())[:200]}") from None


def _linear(file: Path, value: Any) -> Linear:
    if not isinstance(value, dict) or "merge_method" not in value:
        raise RadinError(f"{file}: no recipe of mergekit's: it has no merge_method")
    method = value["merge_method"]
    if method != "linear":
        raise RadinError(
            f"{file}: merge_method is {str(method)[:40]}; radin averages, so it reads linear alone. mergekit-yaml "
            "makes this merge."
        )
    for part in ("slices", "modules"):
        if part in value:
            raise RadinError(f"{file}: is made of {part}, which are put together and not averaged; expected models")
    unknown = [str(key) for key in value if key not in _KEYS]
    if unknown:
        raise RadinError(f"{file}: {', '.join(unknown)[:200]}: not done by radin; take it out, or use mergekit-yaml")
    models = value.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(model, dict) for model in models):
        raise RadinError(f"{file}: models must be a list of 'model: PATH' with 'parameters: {{weight: NUMBER}}'")
    settings = _parameters(file, value.get("parameters"), ("weight", "normalize"))
    normalize = settings.get("normalize", True)
    if not isinstance(normalize, bool):
        raise RadinError(f"{file}: normalize must be true or false; got {str(normalize)[:40]!r}")
    paths, weights = [], []
    for model in models:
        path = _local(file, model.get("model"))
        if path in paths:
            raise RadinError(f"{file}: names {path} twice")
        paths.append(path)
        mine = _parameters(file, model.get("parameters"), ("weight",))
        found = [*_setting(file, path, mine.get("weight")), *_setting(file, path, settings.get("weight"))]
        if not found:
            raise RadinError(f"{file}: {path} has no weight")
        weights.append(tuple(found))
    base, tokens = value.get("base_model"), value.get("tokenizer_source")
    files = None if base is None else _local(file, base)
    if files is not None and files not in paths:
        raise RadinError(f"{file}: base_model {files} is none of the models that are averaged; take it out")
    if tokens not in (None, "union", "base"):
        files = _local(file, tokens)
    dtype = value.get("out_dtype") or value.get("dtype")
    return Linear(
        file,
        tuple(paths),
        tuple(weights),
        normalize,
        None if dtype is None else str(dtype),
        files,
        tokens if tokens == "union" else None,
    )


def _parameters(file: Path, value: Any, known: Sequence[str]) -> Mapping[str, Any]:
    if value is None:
        return {}
    unknown = [key for key in value if key not in known] if isinstance(value, dict) else [value]
    if unknown:
        raise RadinError(f"{file}: parameters may be {', '.join(known)} here; got {str(unknown[0])[:40]!r}")
    found: Mapping[str, Any] = value
    return found


def _setting(file: Path, path: str, value: Any) -> Setting:
    """A weight: a number, or a list of {value: NUMBER, filter: TEXT}; nothing where there is none."""
    conditions = value if isinstance(value, list) else [] if value is None else [value]
    found: list[tuple[str | None, float]] = []
    for condition in conditions[:_CONDITIONS]:
        text, number = None, condition
        if isinstance(condition, dict) and condition.keys() <= {"value", "filter"}:
            text, number = condition.get("filter"), condition.get("value")
        elif isinstance(value, list):
            number = value  # numbers from the first layer to the last
        if isinstance(number, bool) or not isinstance(number, int | float) or not isinstance(text, str | None):
            raise RadinError(
                f"{file}: the weight of {path} must be one number, or a list of 'value: NUMBER' with 'filter: TEXT'; "
                f"got {str(value)[:60]!r}"
            )
        found.append((None if text == "*" else text, float(number)))
    if len(conditions) > _CONDITIONS:
        raise RadinError(f"{file}: the weight of {path} has more than {_CONDITIONS:,} filters")
    return tuple(found)


def _by_tensor(rows: Mapping[str, tuple[float, ...]], sizes: Mapping[str, int]) -> Recipe:
    """The recipe by as few groups as modules allow: each module whose tensors have the same ratios is one.

    Those of the most elements are of the rest.
    """
    within: dict[str, set[tuple[float, ...]]] = {}
    for name, row in rows.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            within.setdefault(".".join(parts[:end]), set()).add(row)
    held = Counter[tuple[float, ...]]()
    for name, row in rows.items():
        held[row] += sizes[name]
    groups = [
        Group(name, next(iter(found)), affine=True)
        for name, found in within.items()
        if len(found) == 1 and ("." not in name or len(within[name.rpartition(".")[0]]) > 1)
    ]
    return Recipe(held.most_common(1)[0][0], groups=tuple(groups), affine=True)


def _conditions(pool: Pool, recipe: Recipe) -> list[tuple[str, tuple[float, ...]]]:
    """(text, ratios): the first whose text is in a tensor's name has its ratios; where none is, they are the rest's.

    mergekit's filters are texts anywhere in a name: layers.1 is in layers.10 too. So it is tried out on all names, and
    where modules' names do not say it, tensors' own do, the longest first: none of them is in a shorter one.
    """
    aliases = pool.aliases
    wanted = {name: recipe.of(aliases.get(name, name)) for name in pool.names}
    rows = {group.name: group.weights for group in recipe.groups}
    modules = [(name if name in wanted else f"{name}.", row) for name, row in rows.items()]
    modules.sort(key=lambda condition: -len(condition[0]))
    for name, row in wanted.items():
        if next((found for text, found in modules if text in name), recipe.weights) != row:
            break
    else:
        return modules
    inside = [name for name, row in wanted.items() if row != recipe.weights]
    texts = [name for name in wanted if name in inside or any(other in name for other in inside)]
    return [(name, wanted[name]) for name in sorted(texts, key=len, reverse=True)]


def _local(file: Path, value: Any) -> str:
    """A model that is a path here. mergekit sees relative ones from the working directory, and so does radin."""
    if not isinstance(value, str) or not Path(value).expanduser().exists():
        raise RadinError(
            f"{file}: the model {str(value)[:200]!r} is no path here, seen from {absolute(Path())}. radin downloads "
            "nothing: fetch it (hf download NAME --local-dir FOLDER) and name the folder."
        )
    return value


def write_yaml(pool: Pool, recipe: Recipe, output: Path, *, files_from: str | None = None) -> None:
    """Write the merge that ``mergekit-yaml`` makes the same soup by, but for rounding: mergekit sums in float32.

    config and tokenizer are those of ``files_from``. Raises RadinError where a member is nothing that mergekit opens.
    """
    yaml = _yaml()
    for member in (pool[k] for k in recipe.members):
        folder = folder_of(member.checkpoint)
        if member.checkpoint.form is not member.checkpoint or not (folder / "config.json").is_file():
            raise RadinError(
                f"{member.path}: mergekit merges folders of transformers models, with a config.json; this is none"
            )
    source = files_source(pool, recipe, files_from)
    if source not in recipe.members:
        raise RadinError(f"--files-from {files_from}: is not in the recipe; mergekit would average it too")
    paths = {k: str(absolute(folder_of(pool[k].checkpoint))) for k in recipe.members}
    conditions = _conditions(pool, recipe) if recipe.groups else []

    def weight(k: int) -> Any:
        if not conditions:
            return recipe.weights[k]
        found = [{"filter": text, "value": ratios[k]} for text, ratios in conditions]
        return [*found, {"value": recipe.weights[k]}]

    value = {
        "merge_method": "linear",
        "base_model": paths[source],
        "dtype": short(promote(dtype for dtype in pool.dtypes.values() if is_averaged(dtype))),
        "parameters": {"normalize": True},
        "models": [{"model": paths[k], "parameters": {"weight": weight(k)}} for k in recipe.members],
    }
    with told(output):
        write_text(output, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def members_of(source: Path) -> tuple[dict[str, Any], list[str]]:
    """A recipe's JSON form, and where its members were if that is known: of a run, a recipe.json, or a soup.

    Raises RadinError where it is none of these.
    """
    if source.is_dir() and (source / "run.json").is_file():
        recipe = _json(source / "recipe.json")
        places = _json(source / "run.json").get("settings", {}).get("paths", {})
        members = recipe["recipe"]["members"]
        return recipe["recipe"], [places[m["fingerprint"]] for m in members if m["fingerprint"] in places]
    if source.suffix == ".json":
        found = _json(source)
        return found.get("recipe", found), []
    return read_recipe(source), []


def _json(path: Path) -> Any:
    try:
        value = read_json(path)
        return opened(value) if isinstance(value, dict) and "checksum" in value else value
    except FileNotFoundError:
        raise RadinError(f"{path}: not there; is the run finished?") from None
    except (OSError, ValueError) as error:
        raise RadinError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None

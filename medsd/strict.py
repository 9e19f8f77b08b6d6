"""Strict models, and the YAML reader that says where a file does not fit them.

`load_as` reads a file and ``--set a.b=c`` overrides into any child of `Strict`. YAML is read with the safe loader.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from medsd.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """The safe loader, for which 1e-5 is a number, as in YAML 1.2 (10.3.2) and everywhere else."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which puts a text that looks like such a number in quotes."""


_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


class Strict(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySettings = TypeVar("AnySettings", bound=Strict)


def load_as(model: type[AnySettings], path: Path | str | None, overrides: Sequence[str] = ()) -> AnySettings:
    """Read a configuration whose keys are those of `model`; arguments and errors as `load_settings`.

    Without a `path`, the overrides alone.
    """
    tree: dict[str, Any] = {}
    lines: Lines = {}
    if path is not None:
        tree, lines = _read_yaml(Path(path))
    path = Path(path or "--set")
    for override in overrides:
        _apply_override(tree, override, lines)
    try:
        # JSON mode is the strict one that still takes a path as text.
        return model.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(model, path, tree, lines, item) for item in error.errors())) from None


def top_level_keys(path: Path | str) -> tuple[str, ...]:
    """The first-level keys of a configuration, to tell what kind it is.

    Raises SettingsError: the file is missing or no YAML.
    """
    return tuple(map(str, _read_yaml(Path(path))[0]))


def as_yaml(value: bool | int | float | str | None) -> str:
    """A value as an override takes it: ``--set key=…`` with this reads back the same."""
    return yaml.dump([value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain data as the text of a configuration, keys in their order; `load_as` reads it back the same."""
    return str(yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


Lines = dict[tuple[str | int, ...], int | None]
MOST_VALUES = 10_000  # of a configuration; the longest that ships has some hundred


def _read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """The file as plain data, and the line of each key path."""
    try:
        tree, lines = _parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such configuration file") from None
    except YamlError as error:
        where = str(path) if error.line is None else f"{path}:{error.line}"
        raise SettingsError(f"{where}: not valid YAML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as a configuration ({type(error).__name__})") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: a configuration is a mapping of keys to values")
    return tree, lines


class YamlError(ValueError):
    """What is wrong with a text of YAML, and in which line, where that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def _parse_yaml(text: str) -> tuple[Any, Lines]:
    """Plain data, and the line of each key path.

    Raises YamlError: no YAML, a key that comes twice, or more values or levels than any configuration has.
    """
    try:
        loader = _Loader(text)  # a child of the safe loader
        root = loader.get_single_node()
        lines: Lines = dict(_key_lines(root, (), count()))  # before any value is made: an alias may stand for a million
        return (None if root is None else loader.construct_document(root)), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise YamlError(getattr(error, "problem", None) or "cannot be parsed", mark and mark.line + 1) from None
    except RecursionError:
        raise YamlError("values are nested too deeply") from None
    except YamlError:
        raise
    except ValueError:
        raise YamlError("a date or a number in it does not exist; put texts in quotes") from None


def _key_lines(
    node: yaml.Node | None, prefix: tuple[str | int, ...], seen: Iterator[int]
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    children: list[tuple[str | int | None, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value if _is_word(key) else None, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(position, value, value) for position, value in enumerate(node.value)]
    before: set[str | int] = set()
    for name, place, value in children:
        line = place.start_mark.line + 1
        if next(seen) >= MOST_VALUES:
            raise YamlError(f"more than {MOST_VALUES:,} values, those that aliases (*) repeat counted", line)
        if name is None:
            raise YamlError("a key is a word", line)
        if name in before:
            raise YamlError(f"the key '{name}' stands here a second time", line)
        before.add(name)
        yield (*prefix, name), line
        yield from _key_lines(value, (*prefix, name), seen)


def _is_word(key: yaml.Node) -> bool:
    """Whether a key can be one of JSON: no list, no mapping, no date."""
    return isinstance(key, yaml.ScalarNode) and not key.tag.endswith((":timestamp", ":binary"))


def read_json(text: str | bytes) -> Any:
    """JSON from outside as plain data; stricter than `json.loads`.

    Raises ValueError: no JSON, a key that comes twice in an object, or values that are nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' stands twice")
    return found


def _apply_override(tree: dict[str, Any], override: str, lines: Lines) -> None:
    key, separator, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise SettingsError(f"--set {override}: write it as key.subkey=value")
    try:
        value, _ = _parse_yaml(text)
    except YamlError as error:
        raise SettingsError(f"--set {override[:200]}: the value is not valid YAML: {error}") from None
    branch = tree
    for part in parts[:-1]:
        child = branch.get(part)
        if child is None:
            child = branch[part] = {}
        if not isinstance(child, dict):
            raise SettingsError(f"--set {override}: '{part}' is a value, it has no keys below it")
        branch = child
    branch[parts[-1]] = value
    for depth in range(1, len(parts) + 1):
        lines.setdefault(parts[:depth], None)
    lines[parts] = None


def _explain(top: type[Strict], path: Path, tree: Mapping[str, Any], lines: Lines, detail: Any) -> str:
    """One line for one validation error: file, line, key, what is wrong, what would be right."""
    location = _in_tree(tree, detail["loc"])
    key = ".".join(str(part) for part in location) or "settings"
    known = [location[:depth] for depth in range(len(location), 0, -1) if location[:depth] in lines]
    line = lines[known[0]] if known else 1
    where = "--set" if line is None else f"{path}:{line}"
    if detail["type"] == "extra_forbidden":
        valid = _valid_keys(top, location[:-1], tree)
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"valid here: {', '.join(valid)}"
        return f"{where}: unknown key '{key}'; {hint}"
    if detail["type"] == "missing":
        return f"{where}: '{key}' is missing"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(detail["input"], dict) else f", not {detail['input']!r}"
    return f"{where}: '{key}': {message[0].lower() + message[1:]}{shown}"


def _in_tree(tree: Any, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Drop the parts of a pydantic location that are no keys of the file (names of union members)."""
    kept: list[str | int] = []
    for position, part in enumerate(location):
        if _leads_on(tree, part):
            tree = tree[part]
            kept.append(part)
        elif position == len(location) - 1 and isinstance(tree, Mapping):
            kept.append(part)
    return tuple(kept)


def _leads_on(tree: Any, part: str | int) -> bool:
    """Whether `part` is a key of a mapping, or a place in a list."""
    if isinstance(tree, list):
        return isinstance(part, int) and part < len(tree)
    return isinstance(tree, Mapping) and part in tree


def _valid_keys(top: type[Strict], location: Sequence[str | int], tree: Mapping[str, Any]) -> list[str]:
    """The keys that the model at `location` below `top` has."""
    candidates: list[type[BaseModel]] = [top]
    branch: Any = tree
    for part in location:
        branch = branch[part] if _leads_on(branch, part) else None
        field = candidates[0].model_fields.get(str(part))
        if field is not None:  # else a place in a list of models, or a key of a mapping to them
            candidates = list(_models_in(field.annotation))
        named = [m for m in candidates if isinstance(branch, Mapping) and _literal_source(m) == branch.get("source")]
        candidates = named or candidates
    return list(candidates[0].model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _literal_source(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("source")
    return field.annotation.__args__[0] if field is not None and field.annotation is not None else None


class Described(Strict):
    """Base of the parts of bundle.json: strict when written, and when read."""

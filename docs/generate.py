"""What the documentation takes from the code, made while it is built: no page repeats by hand what the code says.

MkDocs calls `on_files` and `on_page_markdown` (the hook is named in mkdocs.yml). A page takes a part by a line
`<!-- generate: NAME -->`, where NAME is a key of `PARTS`.
"""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import typer
from figures import relations_figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "medsd" / "experiments" / "compare" / "reports"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere: the reports of `medsd compare`, CHANGELOG.md, CONTRIBUTING.md."""
    for path in sorted(REPORTS.iterdir()):
        files.append(File.generated(config, f"benchmarks/losses/{path.name}", abs_src_path=str(path)))
    for name in ("CHANGELOG", "CONTRIBUTING"):
        files.append(File.generated(config, f"{name.lower()}.md", abs_src_path=str(ROOT / f"{name}.md")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the generated parts in."""
    return re.sub(r"<!-- generate: ([\w-]+) -->", lambda found: PARTS[found[1]](), markdown)


def table(heads: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def commands() -> str:
    """Every verb: its own help, its arguments and its options."""
    from medsd.cli import app

    return "\n\n".join(_commands(typer.main.get_command(app), ("medsd",)))


def _commands(command: Any, names: tuple[str, ...]) -> Iterator[str]:
    if len(names) > 1:
        yield f"{'#' * len(names)} {' '.join(names)}"
        yield _help(command)
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*names, name))
    if not hasattr(command, "commands"):
        yield table(("argument or option", "what it is"), _parameters(command))


def _help(command: Any) -> str:
    """The docstring of a verb; its examples as code."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))
    shown = []
    for paragraph in paragraphs:
        text = " ".join(paragraph.split())
        shown.append(f"```\n{text.removeprefix('Example: ')}\n```" if text.startswith("Example: ") else _escaped(text))
    return "\n\n".join(shown)


def _parameters(command: Any) -> Iterator[tuple[str, str]]:
    """Name and explanation of each argument and option, as --help has them."""
    context = command.context_class(command)
    for one in command.params:
        if record := one.get_help_record(context):
            yield f"`{' '.join(record[0].split())}`", _escaped(" ".join(record[1].split()))


def settings() -> str:
    """Every key of a configuration, a table a section, from the pydantic models."""
    from medsd.settings import Settings

    seen: dict[type[BaseModel], str] = {}
    return "\n\n".join(_settings(Settings, "", seen))


def _settings(model: type[BaseModel], prefix: str, seen: dict[type[BaseModel], str]) -> Iterator[str]:
    if prefix:
        seen[model] = prefix
    title = prefix or "The whole"
    yield f"## {title}"
    yield (inspect.getdoc(model) or "").partition("\n")[0]
    yield table(("key", "what it is", "values", "default"), _fields(model))
    for name, field in model.model_fields.items():
        children = list(_models(field.annotation))
        for child in children:
            source = child.model_fields.get("source")
            many = f" ({get_args(source.annotation)[0]})" if len(children) > 1 and source else ""
            path = f"{prefix}.{name}".lstrip(".") + many
            if child not in seen:
                yield from _settings(child, path, seen)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    documented = attributes(model)
    for name, field in model.model_fields.items():
        text = field.description or documented.get(name, "")
        if name == "source" and not text:
            text = "Which of the data sources this is."
        yield f"`{name}`", _escaped(text), _values(field), _field_default(field)


def attributes(model: type) -> Mapping[str, str]:
    """What the section "Attributes" of a docstring says of each name."""
    text = (inspect.getdoc(model) or "").partition("Attributes:")[2]
    found: dict[str, str] = {}
    for names, said in re.findall(r"^    ([\w, ]+): (.*(?:\n {8,}.*)*)", text, flags=re.MULTILINE):
        found |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return found


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(each, name)}"
        for each in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(each, name, None) is not None
    ]
    return ", ".join([_type(field.annotation), *bounds])


def _type(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        models = list(_models(kind))
        if models:
            return "a section"
        return " or ".join(_type(each) for each in get_args(kind) if each is not type(None))
    if str(get_origin(kind)) == "typing.Literal":
        return ", ".join(f"`{json.dumps(each) if not isinstance(each, str) else each}`" for each in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return f"list of {_type(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    if hasattr(kind, "__metadata__"):
        return _type(get_args(kind)[0])
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", Any: "any"}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a section"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """The settings models within a type, in their order."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        return
    for each in get_args(kind):
        yield from _models(each)


def _field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is None or value == "":
        return ""
    shown = str(value) if isinstance(value, Path | str) else json.dumps(value, default=str)
    return f"`{shown}`"


def _escaped(text: str) -> str:
    """Plain text as Markdown that shows it as it stands."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", part) for part in parts)


def losses() -> str:
    """The losses of `loss.name`, and what each does with labels."""
    from medsd.sd import family_table

    return family_table()


def reasons() -> str:
    """Every reason of the gate, with its sentence and what it leads to by default."""
    from medsd.dicom.policy import REASONS, GatePolicy

    rows = ((f"`{reason}`", _escaped(text), GatePolicy().action(reason)) for reason, text in REASONS.items())
    return table(("code", "sentence", "by default"), rows)


def finding_sets() -> str:
    """Every finding set with its findings and their codes."""
    from medsd.findings import FINDING_SETS

    parts = []
    for name, findings in FINDING_SETS.items():
        rows = ((f"`{one.name}`", one.title, one.snomed, one.radlex) for one in findings.findings)
        parts.append(f"## {name}\n\n" + table(("name", "shown as", "SNOMED CT", "RadLex"), rows))
    return "\n\n".join(parts)


def layers() -> str:
    """The layers of pyproject.toml, the highest first, each room with the first line of its docstring."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layered = next(each for each in contracts["contracts"] if each["type"] == "layers")["layers"]
    rows = []
    for number, line in reversed(list(enumerate(reversed(layered)))):
        for room in re.split(r"\s*[|:]\s*", line):
            said = (import_module(room).__doc__ or "").strip().partition("\n")[0]
            rows.append((number, f"`{room}`", said))
    return table(("layer", "room", "what stands there"), iter(rows))


def bundles() -> str:
    """The bundles that ship, with the figures of their own evaluation.json."""
    rows = []
    for folder in sorted((ROOT / "models").iterdir()):
        said = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        measured = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        macro, ndcg = measured["macro"]["auroc"], _ndcg(measured["retrieval"])
        people = f"{measured['images']} of {measured['patients']}"
        auroc = f"{_interval(macro['interval'])}, {macro['over']} findings"
        rows.append((f"models/{folder.name}", said["version"], people, auroc, ndcg))
    return table(("bundle", "version", "test images of patients", "macro AUROC", "nDCG@10"), iter(rows))


def evidence() -> str:
    """Where evidence maps point, of the bundles whose test images have boxes: their evaluation_evidence.json."""
    rows = []
    for path in sorted((ROOT / "models").glob("*/evaluation_evidence.json")):
        for method in json.loads(path.read_text(encoding="utf-8"))["methods"]:
            rows.append((f"models/{path.parent.name}", method["name"], _interval(method["pointing"])))
    return table(("bundle", "map", "points into a box"), iter(rows))


def _ndcg(retrieval: Mapping[str, Any]) -> str:
    ndcg = retrieval.get("ndcg", {})
    return _interval(ndcg) if "value" in ndcg else ""


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def python_surface() -> str:
    """What `medsd` and `medsd.sd` export, for mkdocstrings, each where it is defined."""
    import medsd
    import medsd.sd

    parts = []
    for module in (medsd, medsd.sd):
        objects = {name: getattr(module, name) for name in module.__all__}
        shown = [name for name, value in objects.items() if inspect.isclass(value) or inspect.isfunction(value)]
        paths = [f"{objects[name].__module__}.{name}" for name in shown]
        parts.append(f"## {module.__name__}\n\n" + "\n\n".join(f"::: {path}" for path in paths))
    return "\n\n".join(parts)


PARTS: Mapping[str, Callable[[], str]] = {
    "bundles": bundles,
    "commands": commands,
    "evidence": evidence,
    "finding-sets": finding_sets,
    "layers": layers,
    "losses": losses,
    "python": python_surface,
    "reasons": reasons,
    "relations-figure": relations_figure,
    "settings": settings,
}

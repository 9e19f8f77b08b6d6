"""The few forms of Markdown that the sections are made of, and how figures are told in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medsd.metrics.intervals import Interval

# Absolute paths, paths from a home or a parent folder, Windows drives; not the slash of a web address or of «a/b».
_MACHINE_PATH = re.compile(r"(?<![\w.:/~<…])(?:~|(?:\.\./)*\.\.)?/[\w.~+@-][^\s\"'`,;)]*|\b[A-Za-z]:\\[^\s\"'`,;)]*")


def without_machine_paths(text: str) -> str:
    """`text` with paths of the machine that it was made on replaced by their last part."""
    return _MACHINE_PATH.sub(lambda found: "…/" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def joined(*parts: str) -> str:
    """The parts that say something, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars within cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bullets(*lines: tuple[str, str]) -> str:
    """A list of names with their values."""
    return "\n".join(f"- {name}: {value}" for name, value in lines)


def warning(text: str) -> str:
    """A sentence that must not be overlooked; "" where there is none."""
    return f"> **Warning.** {text}" if text else ""


def scalars(value: Any) -> str:
    """A number, a text or a mapping of them in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {scalars(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def told(interval: Interval | None) -> str:
    """A value with its interval; "" where there is none to tell."""
    return "" if interval is None else str(interval)


def figure(value: float | None, digits: int = 3) -> str:
    """A number that may be too few to tell."""
    return "too few to tell" if value is None else f"{value:.{digits}f}"


def chance(value: float | None) -> str:
    """A p value; one that is smaller than can be told is said to be."""
    if value is None:
        return "–"
    return "below 0.001" if value < 0.001 else f"{value:.3f}"

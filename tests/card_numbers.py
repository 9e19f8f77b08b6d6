"""Which numbers of a card's tables stand in no JSON file of the bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.(\d+))?(e[-+]\d+)?(?!\w)")


def unexplained_numbers(markdown: str, folder: Path) -> tuple[int, list[str]]:
    """How many numbers the tables have, and those cells whose number is no value of `folder`'s JSON files, rounded."""
    numbers: set[float] = set()
    texts: set[str] = set()
    for path in folder.glob("*.json"):
        for value in _leaves(json.loads(path.read_text(encoding="utf-8"))):
            if isinstance(value, str):
                texts.add(value)
            else:
                numbers.add(value)
    named = sorted((text for text in texts if re.search(r"\d", text) and len(text) > 2), key=len, reverse=True)
    count, missing = 0, []
    for line in markdown.splitlines():
        if not line.startswith("|") or set(line) <= set("|- "):
            continue
        for cell in line.strip("|").split("|"):
            rest = cell.replace("below 0.001", "")
            for text in named:
                rest = re.sub(rf"(?<![\w.]){re.escape(text)}(?![\w.])", " ", rest)
            for found in _NUMBER.finditer(rest):
                count += 1
                if not _is_told(found, numbers):
                    missing.append(cell.strip())
    return count, missing


def _is_told(found: re.Match[str], numbers: set[float]) -> bool:
    text, digits = found[0].lstrip("+"), len(found[1] or "")
    kind = "e" if found[2] else "f"
    return any(f"{number:.{digits}{kind}}" in (text, f"-{text}") and _sign(number, text) for number in numbers)


def _sign(number: float, text: str) -> bool:
    return (number < 0) == text.startswith("-") or float(text) == 0


def _leaves(tree: Any) -> Iterator[float | str]:
    if isinstance(tree, dict):
        yield from (int(key) if key.isdigit() else key for key in tree)
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value)
    elif isinstance(tree, (str, int, float)) and not isinstance(tree, bool):
        yield tree

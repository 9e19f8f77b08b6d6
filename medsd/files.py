"""Files that a reader finds whole: the old one, or the new one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_json(path: Path, tree: Mapping[str, Any] | Sequence[Any], *, indent: int | None = 2) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(tree, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)

"""Files that a reader finds complete, the old one or the new one; and the YAML files that the package ships."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a draft beside `path`; what is written to it replaces `path` when the block ends without an error.

    With `durable`, it waits until the disk has it, so that it survives a power cut. Raises OSError: it cannot be
    written; `path` is as it was, and the draft is gone.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")  # several processes may write the same file
    try:
        yield draft
        if durable:
            with draft.open("r+b") as file:
                os.fsync(file.fileno())
        draft.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write bytes, or text as UTF-8, as `replacing` does."""
    with replacing(path, durable=durable) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, tree: Mapping[str, Any] | Sequence[Any], *, indent: int | None = 2) -> None:
    """Write JSON as `replacing` does."""
    write_whole(path, json.dumps(tree, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@cache
def packaged(package: str, name: str) -> Any:
    """The content of a YAML file of `package`, shared by all who ask; raises FileNotFoundError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one where PyYAML has it
    return yaml.load(files(package).joinpath(name).read_bytes(), Loader=loader)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""The images that ship with a bundle, to try it with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsd.errors import BundleError
from medsd.strict import read_json

EXAMPLES = "examples"


@dataclass(frozen=True)
class Example:
    """An image that ships with the bundle."""

    title: str
    path: Path
    note: str = ""


def shipped_examples(folder: Path) -> tuple[Example, ...]:
    """The examples of a bundle: ``examples/examples.json``, a list of title, file and note.

    Returns:
        the examples in their order; none where the bundle has no such folder.

    Raises:
        BundleError: the list is there and is wrong, or names a file that is not in the folder.
    """
    listing = folder / EXAMPLES / "examples.json"
    if not listing.is_file():
        return ()
    try:
        entries = read_json(listing.read_text(encoding="utf-8"))
        return tuple(_example(listing.parent, entry) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(
            f"{listing}: cannot be used ({type(error).__name__}); it is a list of objects with title, file and note"
        ) from None


def _example(folder: Path, entry: dict[str, Any]) -> Example:
    path = folder / str(entry["file"])
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder}: examples.json names '{entry['file']}', which is not in this folder")
    return Example(str(entry["title"]), path, str(entry.get("note") or ""))

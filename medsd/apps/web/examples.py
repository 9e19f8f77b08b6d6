"""The images that ship with a bundle, to try it with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsd.bundle.layout import Bundle
from medsd.cases.pictures import PictureFolder, encode_thumbnail
from medsd.dicom.read import read_radiograph
from medsd.errors import BundleError, MedsdError
from medsd.strict import read_json

EXAMPLES = "examples"
THUMBNAIL_SIDE = 150


@dataclass(frozen=True)
class Example:
    """An image that ships with the bundle."""

    title: str
    path: Path
    note: str = ""

    def thumbnail(self) -> bytes | None:
        """A small picture of it; None where it cannot be read."""
        try:
            return encode_thumbnail(read_radiograph(self.path).pixels, THUMBNAIL_SIDE)
        except (OSError, MedsdError):
            return None


def offered(bundle: Bundle, pictures: PictureFolder | None) -> tuple[Example, ...]:
    """The examples of a bundle, and an image of the folder that a person gives; errors as `shipped_examples`."""
    own = pictures.first() if pictures is not None and bundle.description.image else None
    return (*shipped_examples(bundle.folder), *([Example("From your images", own)] if own else []))


def shipped_examples(folder: Path) -> tuple[Example, ...]:
    """The examples of a bundle: ``examples/examples.json``, a list of title, file and note; none where it is missing.

    Raises BundleError: the list is wrong, or names a file that is not in the folder.
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

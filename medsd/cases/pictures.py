"""Pictures of cases: the small one that an index may carry, and the original in a folder that the user gives."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.errors import DataError
from medsd.privacy import KeyedHasher

logger = logging.getLogger(__name__)

SIDE = 224
QUALITY = 70  # 4 to 8 KB
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm"})


def encode_thumbnail(image: npt.NDArray[Any], side: int = SIDE) -> bytes:
    """A small WebP of an image (H, W) in 0…1, its longer side `side` pixels; a smaller image is not enlarged."""
    picture = Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


class PictureFolder:
    """The images (.png, .jpg, .jpeg, .dcm) of a folder and all its subfolders by study key.

    The study id of a file is its stem, so it belongs to a case with one of ``hasher.study_keys(stem)``. The folder is
    listed once, at the first question. Raises DataError if there is no such folder.
    """

    def __init__(self, root: Path | str, hasher: KeyedHasher) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder of images")
        self._hasher = hasher
        self._paths: dict[str, Path] | None = None

    def path(self, study_key: str) -> Path | None:
        """The file of a case, or None when the folder has none."""
        return self._index().get(study_key) if study_key else None

    def first(self) -> Path | None:
        """One of the images, without listing them all; None where there is none."""
        return next((path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES), None)

    def __len__(self) -> int:
        return len(set(self._index().values()))

    def _index(self) -> dict[str, Path]:
        if self._paths is None:
            files = [path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES]
            self._paths = {}
            for path in sorted(files):  # of two files with one stem the first in order of path stays
                for key in self._hasher.study_keys(path.stem):
                    self._paths.setdefault(key, path)
            logger.info("%s: %d images", self.root, len(self))
        return self._paths

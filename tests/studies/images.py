"""Small grey images for the replicas of the data sets, and phantoms as PNG."""

from pathlib import Path

import numpy as np
from PIL import Image

from medsd.studies.phantom import PhantomStudy


def write_image(path: Path, grey: int = 90) -> Path:
    """A grey PNG or JPEG of 32 × 32 pixels, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32), grey, np.uint8)).save(path)
    return path


def write_png(study: PhantomStudy, path: Path) -> None:
    """A phantom as an 8-bit grey PNG."""
    Image.fromarray(np.round(study.pixels * 255).astype(np.uint8)).save(path)

"""NIH ChestX-ray14 as a set for `medsd compare`: radiographs as the features of a frozen ImageNet encoder.

EfficientNet-lite0 with ImageNet weights reads each image once, plain and changed, and the comparison trains the layers
after it; training an encoder for every loss, trial and seed would take days.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.experiments.compare.labelled_set import LabelledSet, find_folder
from medsd.experiments.compare.settings import CompareSettings, FrozenImageSettings
from medsd.files import replacing
from medsd.settings import AugmentSettings, ImageSettings, Nih14Source, PixelSpec, SplitSettings
from medsd.studies.manifest import SELECTED, Manifest

log = logging.getLogger(__name__)

_BATCH = 32
_SPLITS = SplitSettings(train=0.64, validation=0.16, test=0.2)  # the comparison draws its own validation part
_AUGMENT = AugmentSettings()
_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "labels.csv")


def read_radiographs(settings: CompareSettings) -> LabelledSet:
    """The images that the gate admits, split by patient (by NIH's own test list where it is there).

    Features are cached in the comparison's output folder.

    Raises:
        DataError: the folder, its table or its images are missing.
        DependencyError: the package with the ImageNet weights is not installed.
    """
    from medsd.studies.sources.nih14 import read

    parts = list(settings.images.parts)
    root = settings.root if parts else _root(settings.root)
    manifest = read(Nih14Source(source="nih14", root=root, parts=parts), _SPLITS)
    features = _features(manifest, settings.images, settings.output / "features")
    split = manifest.table["split"].to_numpy()
    seen = ~np.isnan(features[:, 0, 0]) & (split != SELECTED)
    if not seen.any():
        raise DataError(f"{manifest.root}: no image can be read")
    return LabelledSet(
        name="radiographs",
        title="radiographs of NIH ChestX-ray14, frozen ImageNet features",
        origin=(
            "Wang et al., CVPR 2017, NIH Clinical Center; labels mined from reports, split by patient; "
            f"EfficientNet-lite0 features at {settings.images.size} pixels, not trained further"
        ),
        findings=tuple(manifest.findings),
        labels=manifest.labels[seen],
        raw=features[seen],
        patients=manifest.patients[seen],
        is_test=(split == "test")[seen],
    )


def _root(root: Path) -> Path:
    for table in _TABLES[:-1]:
        if (root / table).exists():
            return root
    return find_folder(root, ("nih_cxr", "."), _TABLES[-1], "set 'radiographs'")


def _features(manifest: Manifest, images: FrozenImageSettings, folder: Path) -> npt.NDArray[np.float32]:
    """(N, V, 1280), NaN for an image that cannot be read; from the cache if it is of the same images."""
    key = hashlib.sha256(
        f"{manifest.data_hash()} {images.model_dump_json(exclude={'parts'})} {_AUGMENT.model_dump_json()}".encode()
    )
    path = folder / f"radiographs-{key.hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            return kept["features"].astype(np.float32)
    features = np.concatenate(list(_read_all(manifest, images)))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, features=features)
    return features.astype(np.float32)


def _read_all(manifest: Manifest, images: FrozenImageSettings) -> Iterator[npt.NDArray[np.float16]]:
    import torch

    from medsd.networks.image import image_encoder
    from medsd.training.augment import Augmentation, sample_seed

    encoder = image_encoder(ImageSettings(backbone="efficientnet-lite0", weights="imagenet"), images.size).eval()
    change = Augmentation(_AUGMENT, images.size)
    paths = [manifest.root / str(name) for name in manifest.table["path"]]
    for start in range(0, len(paths), _BATCH):
        squares = [_square(path, images.size) for path in paths[start : start + _BATCH]]
        views = [
            torch.from_numpy(square.astype(np.float32) / 255)[None]
            if view == 0
            else change(square[None], [sample_seed(start + offset, view)])[0]
            for offset, square in enumerate(np.zeros((images.size,) * 2, np.uint8) if s is None else s for s in squares)
            for view in range(images.views)
        ]
        with torch.inference_mode():
            pooled = torch.cat([encoder(part).mean((2, 3)) for part in torch.stack(views).split(_BATCH)])
        features = pooled.numpy().reshape(len(squares), images.views, -1).astype(np.float16)
        features[[square is None for square in squares]] = np.nan
        yield features
        if (start // _BATCH) % 10 == 0:
            log.info("radiographs: features of %d of %d images", min(start + _BATCH, len(paths)), len(paths))


def _square(path: Path, size: int) -> npt.NDArray[np.uint8] | None:
    """The pixels that training and serving see, or None for an image that the gate refuses."""
    from medsd.dicom.gate import admit
    from medsd.preprocessing.pixels import to_pixels

    radiograph = admit(path).radiograph
    return None if radiograph is None else to_pixels(radiograph, PixelSpec(size=size))

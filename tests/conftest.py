"""Fixtures for every room: the folder of real data, and radiographs as DICOM files built in memory."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from medsd import privacy
from medsd.bundle.layout import Bundle
from medsd.inference.predict import Predictor
from medsd.privacy import KeyedHasher
from tests.bundles import tiny_bundle
from tests.runs import small_settings

if TYPE_CHECKING:
    from medsd.pipeline.folder import Run

# A loaded machine is no reason to fail.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

BuildDx = Callable[..., bytes]

# Rooms with files that take a minute or so: they train, or start browsers and servers.
LONG = {"browser", "experiments", "export", "networks", "pacs", "pipeline", "scoring", "training"}


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported for the tests stays, so the collector of garbage need not go through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long go first, mixed: then no worker is left alone at the end, nor are browsers among themselves.

    pytest-xdist keeps this order with --no-loadscope-reorder.
    """

    def place(item: pytest.Item) -> tuple[bool, str, Path]:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        return room not in LONG and not room.startswith("test_"), item.path.name, item.path

    items.sort(key=place)


privacy.install_log_filter()  # as every verb does: what a test reads from the log is what a user reads


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Identities that one test registered are not redacted in the next one of its process."""
    monkeypatch.setattr(privacy, "_identities", privacy.IdentityFilter())


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: MEDSD_DATA, else ../shared/data beside the repository; skips where it is absent."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("MEDSD_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"real data: no folder {root}; set MEDSD_DATA")
    return root


def dx_dataset(stored: npt.NDArray[np.integer], bits_stored: int | None = None, **elements: object) -> Dataset:
    """A DX chest radiograph of an invented patient; `elements` are keywords to set, or to leave out where None."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    ds.PatientName, ds.PatientID = "Phantom^Thora", "PH-0042"
    ds.PatientSex, ds.PatientAge = "F", "061Y"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored = bits_stored or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    return ds


def file_bytes(ds: Dataset, meta: bool = True) -> bytes:
    """`ds` as the content of a file, with preamble and file meta, or bare."""
    stream = io.BytesIO()
    if meta:
        dcmwrite(stream, ds, enforce_file_format=True)
    else:
        syntax = ds.file_meta.TransferSyntaxUID
        del ds.file_meta
        dcmwrite(stream, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return stream.getvalue()


@pytest.fixture
def build_dx() -> BuildDx:
    """Builds the content of a DX file: ``build_dx(stored, bits_stored=12, WindowCenter=…, meta=True)``."""

    def build(
        stored: npt.NDArray[np.integer], bits_stored: int | None = None, meta: bool = True, **elements: object
    ) -> bytes:
        return file_bytes(dx_dataset(stored, bits_stored, **elements), meta)

    return build


@pytest.fixture(scope="session")
def chest() -> npt.NDArray[np.float64]:
    """A crude frontal chest (96, 80) in 0…1: bright body, dark lungs, dark air above the shoulders."""
    y, x = np.mgrid[0:96, 0:80] / np.array([[[95]], [[79]]])
    lungs = sum(np.exp(-(((x - centre) / 0.13) ** 2) - ((y - 0.4) / 0.28) ** 2) for centre in (0.3, 0.7))
    air = sum(np.exp(-(((x - side) / 0.3) ** 2) - (y / 0.15) ** 2) for side in (0.0, 1.0))
    image = 0.55 + 0.3 * y - 0.35 * lungs - 0.5 * air
    return np.clip(image + np.random.default_rng(0).normal(0, 0.01, image.shape), 0.0, 1.0)


@pytest.fixture(scope="session")
def image_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "image")


@pytest.fixture(scope="session")
def fused_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "fused", fused=True)


@pytest.fixture(scope="session")
def predictor(image_bundle: Bundle) -> Predictor:
    return Predictor(image_bundle, provider="cpu")


@pytest.fixture(scope="session")
def fused(fused_bundle: Bundle) -> Predictor:
    return Predictor(fused_bundle, provider="cpu")


@pytest.fixture(scope="session")
def hasher() -> KeyedHasher:
    return KeyedHasher(b"a key for tests alone")


@pytest.fixture
def films(tmp_path: Path, chest: npt.NDArray[np.float64]) -> Path:
    """Seven PNG chests that differ, one file that is none, one hidden file."""
    folder = tmp_path / "films"
    (folder / "deeper").mkdir(parents=True)
    for number in range(7):
        shade = np.clip(chest * (0.6 + 0.06 * number), 0, 1)
        place = folder / "deeper" if number > 4 else folder
        Image.fromarray((shade * 255).astype(np.uint8)).save(place / f"film_{number}.png")
    (folder / "note.doc").write_bytes(b"no film at all")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, monkeypatch_session: pytest.MonkeyPatch) -> Run:
    """A run with every step done, which is trained once for all workers of pytest-xdist: nobody may change it."""
    from medsd.pipeline.folder import Run
    from medsd.pipeline.run import run_steps  # which imports torch

    monkeypatch_session.setenv("MEDSD_KEY", "a key for the tests of medsd")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "phantom"
    run = Run(small_settings(folder))
    with FileLock(f"{folder}.lock"):
        return run if (run.folder / "done" / "index.json").is_file() else run_steps(run.settings)


@pytest.fixture(scope="session")
def monkeypatch_session() -> pytest.MonkeyPatch:
    """A monkeypatch that lasts as long as the run."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch

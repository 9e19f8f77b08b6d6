"""One furnished bundle for all tests of the app."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsd.apps.web.reading import Reader, Reading
from medsd.apps.web.server import open_reader
from medsd.bundle.layout import Bundle
from medsd.privacy import KEY_VARIABLE
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import KEY, furnish


@pytest.fixture(autouse=True)
def _own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests never make or read the key file of the person who runs them."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return furnish(tmp_path_factory.mktemp("bundle") / "room")


@pytest.fixture(scope="session")
def reader(bundle: Bundle) -> Reader:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        return open_reader(bundle)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A DICOM file that no case of the bundle was made of."""
    path = tmp_path_factory.mktemp("image") / "image.dcm"
    write_dicom(generate_study(40, seed=9, size=200), path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def reading(reader: Reader, image: bytes) -> Reading:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medsd.apps.web.reading.ALIKE_S", 60.0)  # all images of cases are read, however busy the machine
        return reader.read(image, "short of breath")


@pytest.fixture
def dropped(tmp_path: Path, image: bytes) -> Path:
    """The image as Gradio hands it over: a copy in its own folder."""
    path = tmp_path / "upload.dcm"
    path.write_bytes(image)
    return path

"""Thumbnails, and the original image of a case found by its key."""

import io

import numpy as np
import pytest
from PIL import Image

from medsd.cases.pictures import PictureFolder, encode_thumbnail
from medsd.errors import DataError
from medsd.privacy import KeyedHasher, public_hasher


def test_a_thumbnail_is_a_small_webp_that_looks_like_the_image(chest):
    image = np.kron(chest, np.ones((10, 10)))  # (960, 800)
    data = encode_thumbnail(image)
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == ("WEBP", (187, 224))
    assert len(data) < 12_000
    expected = np.asarray(Image.fromarray((image * 255).astype(np.uint8)).resize(picture.size))
    assert np.abs(np.asarray(picture.convert("L"), float) - expected).mean() < 4


def test_a_small_image_is_not_enlarged():
    assert Image.open(io.BytesIO(encode_thumbnail(np.full((20, 30), 0.5)))).size == (30, 20)


def test_the_image_of_a_case_is_found_by_the_key_of_its_stem(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/00000013_005.png", "a/b/scan 2.DCM", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    hasher = public_hasher("nih14")
    folder = PictureFolder(tmp_path, hasher)
    assert folder.path(hasher.study_key("00000013_005")) == tmp_path / "a/00000013_005.png"
    assert folder.path(hasher.study_key("scan 2")) == tmp_path / "a/b/scan 2.DCM"
    assert folder.path(hasher.study_key("notes")) is None
    assert folder.path("") is None
    assert len(folder) == 2


def test_another_key_finds_nothing(tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    assert PictureFolder(tmp_path, KeyedHasher(b"k" * 32)).path(public_hasher("nih14").study_key("1")) is None
    assert public_hasher("nih14").study_key("1") != public_hasher("other").study_key("1")
    assert public_hasher("nih14").study_key("1") == public_hasher("nih14").study_key("1")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        PictureFolder(tmp_path / "none", public_hasher("nih14"))

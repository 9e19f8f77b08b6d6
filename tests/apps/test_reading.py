"""Reading a study for the page: what goes wrong becomes one sentence, and nothing of the file is logged."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from medsd.apps.web.examples import shipped_examples
from medsd.apps.web.reading import MAX_NOTE, Reader, Reading, thumbnail_image
from medsd.bundle.layout import Bundle
from medsd.cases.pictures import PictureFolder
from medsd.privacy import KeyedHasher
from medsd.results.render import DISPLAY_SIDE, evidence_uri, likeness_share
from medsd.studies.phantom import generate_study
from tests.apps.reading_room import SEED, copy_bundle
from tests.studies.images import write_png


def test_an_image_is_read_with_its_nearest_cases(reading: Reading) -> None:
    assert reading.prediction.status == "scored" and reading.display is not None
    similarities = [case.similarity for case in reading.cases]
    assert len(similarities) == 8 and similarities == sorted(similarities, reverse=True)


def test_the_note_changes_the_reading_and_can_be_read_alone(reader: Reader, image: bytes, reading: Reading) -> None:
    other, alone = reader.read(image, "known heart failure"), reader.read(None, "known heart failure")
    assert other.prediction.probabilities != reading.prediction.probabilities
    assert alone.prediction.status == "scored" and alone.display is None


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\x03\x04zip"]
)
def test_what_is_no_image_is_refused_in_a_sentence(reader: Reader, content: bytes) -> None:
    refused = reader.read(content)
    assert refused.prediction.refused and refused.cases == () and len(refused.prediction.message) > 20


def test_a_truncated_image_is_refused(reader: Reader, image: bytes) -> None:
    assert reader.read(image[: len(image) // 3]).prediction.refused


def test_a_note_of_a_million_characters_is_refused(reader: Reader, image: bytes) -> None:
    refused = reader.read(image, "x" * 1_000_000)
    assert refused.prediction.refused and f"{MAX_NOTE:,}" in refused.prediction.message


def test_a_failure_inside_is_one_sentence_and_its_words_are_not_logged(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Canary^Carla at /secret/path")

    with caplog.at_level(logging.DEBUG):
        refused = Reader(bundle, fail).read(b"image")  # type: ignore[arg-type]
    assert refused.prediction.message.startswith("This file could not be read")
    assert "RuntimeError" in caplog.text and "Canary" not in caplog.text and "secret" not in caplog.text


def test_a_broken_index_leaves_the_findings_standing(reader: Reader, bundle: Bundle, image: bytes) -> None:
    class Broken:
        def similar(self, *_: object, **__: object) -> None:
            raise OSError("gone")

    broken = Reader(bundle, reader._predict, Broken())  # type: ignore[arg-type]
    read = broken.read(image)
    assert read.ranked and read.cases == () and "could not be searched" in read.no_cases


def test_a_large_image_is_shown_at_the_size_of_the_page(reader: Reader) -> None:
    large = np.tile(np.linspace(0, 1, DISPLAY_SIDE * 2, dtype=np.float32), (DISPLAY_SIDE + 9, 1))
    read = reader.read(large)  # type: ignore[arg-type]  # an array is a source too
    assert read.display is not None and max(read.display.shape) == DISPLAY_SIDE


def test_pictures_come_from_the_folder_that_the_person_gives(
    reader: Reader, bundle: Bundle, image: bytes, tmp_path: Path
) -> None:
    class NamesAsKeys(KeyedHasher):
        def study_key(self, uid: str) -> str:
            return uid

    study = generate_study(0, seed=SEED, size=128)
    write_png(study, tmp_path / f"{study.study}.png")
    folder = PictureFolder(tmp_path, NamesAsKeys(b"sixteen bytes or more"))
    read = Reader(bundle, reader._predict, reader.index, folder).read(image)
    keys = [case.case.study_key for case in read.cases]
    for key, picture, case in zip(keys, read.pictures, read.cases, strict=True):
        assert (picture != case.case.thumbnail) == (key == study.study)


def test_what_makes_a_case_alike_is_laid_over_its_own_image(reader: Reader, reading: Reading) -> None:
    rank = next(rank for rank, layer in enumerate(reading.alike) if layer)
    case, embedding = reading.cases[rank].case, reading.prediction.embedding
    assert case.thumbnail is not None and embedding is not None
    content = thumbnail_image(case.thumbnail, reader.bundle.description.pixels.size)
    assert content is not None
    said = reader._predict(content, None)
    assert said.image is not None
    assert reading.alike[rank] == evidence_uri(likeness_share(said, embedding, said.image.shape))
    assert len({layer for layer in reading.alike if layer}) > 1


def test_a_case_whose_image_is_not_at_hand_or_not_readable_stands_without_that_layer(
    reader: Reader, bundle: Bundle, image: bytes, tmp_path: Path
) -> None:
    class NamesAsKeys(KeyedHasher):
        def study_key(self, uid: str) -> str:
            return uid

    first = reader.read(image).cases[0].case.study_key
    (tmp_path / f"{first}.png").write_bytes(b"torn")
    torn = Reader(bundle, reader._predict, reader.index, PictureFolder(tmp_path, NamesAsKeys(b"sixteen bytes or more")))
    assert torn.read(image).alike[0] is None and len(torn.read(image).cases) == 8
    assert thumbnail_image(b"no picture", 1) is None
    thumbnail = reader.read(image).cases[0].case.thumbnail
    assert thumbnail is not None and thumbnail_image(thumbnail, 10_000) is None


def test_large_images_of_cases_do_not_keep_a_reading_waiting(
    reader: Reader, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsd.apps.web.reading.ALIKE_S", 0.0)
    quick = reader.read(image)
    assert len(quick.cases) == 8 and quick.alike == (None,) * 8


def test_examples_are_listed_in_their_order(bundle: Bundle) -> None:
    assert [example.title for example in shipped_examples(bundle.folder)] == ["First phantom", "Second phantom"]


@pytest.mark.parametrize("listing", ["{", "[1]", '[{"title": "x"}]', '[{"title": "x", "file": "../model.onnx"}]'])
def test_a_wrong_list_of_examples_is_an_error_of_the_bundle(bundle: Bundle, tmp_path: Path, listing: str) -> None:
    from medsd.errors import BundleError

    copy = copy_bundle(bundle, tmp_path / "copy")
    (copy / "examples" / "examples.json").write_text(listing, encoding="utf-8")
    with pytest.raises(BundleError, match=r"examples"):
        shipped_examples(copy)


def test_a_bundle_without_examples_has_none(tmp_path: Path) -> None:
    assert shipped_examples(tmp_path) == ()

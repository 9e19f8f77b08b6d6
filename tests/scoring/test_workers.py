from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medsd.bundle.layout import Bundle
from medsd.dicom.gate import GatePolicy
from medsd.errors import DataError
from medsd.inference.predict import Study
from medsd.preprocessing.image import DecodedImage
from medsd.scoring import workers
from medsd.scoring.remote import FetchingDecoder
from medsd.scoring.segments import Block
from medsd.scoring.workers import Actor, DecodeBlock, pack, unpack


class Hostile(FetchingDecoder):
    """Goes down at a film that is called so."""

    def __call__(self, source: Path | bytes, name: str = "") -> DecodedImage:
        if isinstance(source, Path) and source.name == "hostile.dcm":
            os.abort()
        return super().__call__(source, name)


def _same(one: Study, other: Study) -> bool:
    words = [(study.note, study.image and workers._words(study.image)) for study in (one, other)]
    pixels = [study.image.pixels if study.image else None for study in (one, other)]
    return words[0] == words[1] and np.array_equal(pixels[0], pixels[1])


def test_studies_arrive_as_they_left():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 4), np.uint8)
    studies = [
        Study(DecodedImage("scored", name="a", study_key="k", patient_key="p", pixels=pixels[0]), "cough"),
        Study(DecodedImage("refused", "no_pixels", "a name that is no UTF-8: \udcff", "\udcff")),
        Study(None, "a note alone"),
        Study(DecodedImage("warned", "view", "lateral", pixels=pixels[1])),
    ]
    assert all(_same(*pair) for pair in zip(studies, unpack(pack(studies)), strict=True))


def test_a_film_that_brings_its_decoder_down_costs_its_own_row(
    image_bundle: Bundle, films: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "_hide_main", lambda: None)
    names = [str(films / "hostile.dcm"), str(films / "film_0.png"), f"local://{films}/film_1.png", "local:///no.dcm"]
    work = DecodeBlock(Hostile(image_bundle.description.pixels, GatePolicy()), False).begin()
    with work._helper:
        found = [study.image for study in unpack(work({"block": Block(names, {}).to_json()}))]
    assert [film and film.reason for film in found] == ["cannot_decode", "", "", "file_error"]
    assert found[0] is not None and "the decoder crashed" in found[0].message


def test_helpers_do_not_import_the_script_of_a_worker(monkeypatch: pytest.MonkeyPatch):
    main = SimpleNamespace(__spec__="something", __file__="default_worker.py")
    monkeypatch.setitem(workers.sys.modules, "__main__", main)
    workers._hide_main()
    assert main.__spec__ is None and not hasattr(main, "__file__")


class Failing:
    """Work that fails with `error` at each row."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def begin(self) -> Failing:
        return self

    def __call__(self, row: dict[str, object]) -> dict[str, object]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("out.parts: a worker cannot write there"), r"out\.parts: a worker cannot write there"),
        (
            ValueError("DOE^JANE"),
            r"a worker failed \(ValueError in line \d+ of test_workers\.py\); the finished rows .*",
        ),
    ],
)
def test_what_fails_is_handed_on_by_the_actors_after_it(error: Exception, said: str):
    failed = Actor(Failing(error))({"block": "[]"})  # type: ignore[arg-type]
    assert re.fullmatch(said, failed["failed"]) and Actor(Failing(error))(failed) is failed  # type: ignore[arg-type]

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medsd.dicom.gate import GatePolicy
from medsd.inference import decode
from medsd.inference.decode import Decoder, decode_all
from medsd.inference.film import Film
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

DECODER = Decoder(PixelSpec(size=64), GatePolicy(), KeyedHasher(b"a key for tests alone"))


@dataclass(frozen=True)
class FragileDecoder(Decoder):
    """Dies as a native decoder does, at one film."""

    def __call__(self, path: Path) -> Film:
        if path.name == "film_3.png":
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(path)


def _all(films: Path) -> list[Path]:
    return sorted(films.rglob("film_*.png"))


def test_processes_decode_what_one_decodes_in_order(films: Path):
    paths = _all(films)
    alone = list(decode_all(paths, DECODER, workers=1, ahead=2))
    many = list(decode_all(paths, DECODER, workers=2, ahead=2))
    assert [path for path, _ in many] == [path for path, _ in alone] == paths
    for (_, one), (_, other) in zip(alone, many, strict=True):
        assert (one.status, one.reason) == (other.status, other.reason)
        if one.pixels is not None:
            np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_crash_costs_one_film(films: Path):
    decoder = FragileDecoder(DECODER.spec, DECODER.policy)
    found = {path.name: film for path, film in decode_all(_all(films), decoder, workers=2, ahead=3)}
    assert found.pop("film_3.png").message.startswith(
        "film_3.png: the pixel data cannot be decoded (the decoder crashed)"
    )
    assert [film.status for film in found.values()] == ["scored"] * 6


def test_an_unforeseen_failure_is_a_refusal_without_its_text(films: Path, monkeypatch):
    def fail(*_: object, **__: object) -> Film:
        raise RuntimeError("Phantom^Thora")

    monkeypatch.setattr(decode, "read_film", fail)
    film = DECODER(films / "film_1.png")
    assert (film.status, film.reason) == ("refused", "cannot_decode")
    assert "Phantom" not in film.message
    assert "RuntimeError" in film.message


@pytest.mark.parametrize("workers", [1, 2])
def test_only_so_many_films_are_taken_ahead(films: Path, workers: int):
    taken = []

    def paths():
        for path in _all(films) * 10:
            taken.append(path)
            yield path

    decoded = decode_all(paths(), DECODER, workers=workers, ahead=3)
    next(iter(decoded))
    assert len(taken) <= 3 + workers
    decoded.close()

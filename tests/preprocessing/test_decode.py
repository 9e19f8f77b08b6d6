from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from medsd.dicom.policy import REASONS, GatePolicy
from medsd.errors import DependencyError
from medsd.preprocessing import decode
from medsd.preprocessing import helper as helper_module
from medsd.preprocessing.decode import Decoder, Decoders, decode_all
from medsd.preprocessing.image import DecodedImage
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

LINUX = sys.platform == "linux"
DECODER = Decoder(PixelSpec(size=64), GatePolicy(), KeyedHasher(b"a key for tests alone"))


@dataclass(frozen=True)
class FragileDecoder(Decoder):
    """Behaves as native decoders do at hostile films: dies, never ends, or takes all the memory."""

    def __call__(self, source: Path | bytes, name: str = "") -> DecodedImage:
        name = name or (source.name if isinstance(source, Path) else "")
        if name == "film_1.png":
            np.ones(self.policy.max_memory // 8 + 1)
        if name == "film_3.png":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "film_5.png":
            re.match(r"(a+)+b", "a" * 60)  # for ever, in C, with the interpreter's lock held
        return super().__call__(source, name)


@dataclass(frozen=True)
class DozingDecoder(Decoder):
    """Takes its time, but not the processor's."""

    seconds: float = 1.0

    def __call__(self, source: Path | bytes, name: str = "") -> DecodedImage:
        time.sleep(self.seconds)
        return super().__call__(source, name)


def _fragile(max_seconds: float = 60.0) -> FragileDecoder:
    return FragileDecoder(DECODER.spec, GatePolicy(max_seconds=max_seconds, max_memory=512 * 1024**2))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """These limits are short, and the machine may be busy."""
    monkeypatch.setattr(helper_module, "PATIENCE", 100)


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


def test_a_crash_and_a_film_without_end_cost_a_row_each(films: Path):
    decoded = decode_all(_all(films), _fragile(max_seconds=1.0), workers=2, ahead=3)
    found = {path.name: (film.status, film.reason, film.message) for path, film in decoded}
    assert [found.pop(f"film_{number}.png") for number in (3, 5)] == [
        ("refused", "cannot_decode", f"film_3.png: {REASONS['cannot_decode']}".format(detail="the decoder crashed")),
        ("refused", "too_slow", f"film_5.png: {REASONS['too_slow']}".format(accepted="1")),
    ]
    assert found.pop("film_1.png")[:2] == ("refused", "too_large" if LINUX else "cannot_decode")
    assert list(found.values()) == [("scored", "", "")] * 4


def test_a_helper_reads_bytes_and_outlives_what_breaks_it(films: Path):
    content = (films / "film_0.png").read_bytes()
    with _fragile(max_seconds=1.0).helper() as helper:
        found = [helper(content, name).reason for name in ("film_3.png", "film_0.png", "film_5.png", "film_0.png")]
    assert found == ["cannot_decode", "", "too_slow", ""]
    with pytest.raises(DependencyError, match="no process starts"):
        helper(content)


def test_a_film_that_breaks_its_process_keeps_the_keys_of_its_header(build_dx, chest, hasher, tmp_path: Path):
    content = build_dx((chest * 4000).astype(np.uint16), 12, StudyInstanceUID="1.2", SOPInstanceUID="1.2.3")
    decoder = replace(_fragile(max_seconds=1.0), hasher=hasher)
    with decoder.helper() as helper:
        for name, reason in (("film_3.png", "cannot_decode"), ("film_5.png", "too_slow")):
            (tmp_path / name).write_bytes(content)
            for film in (helper(tmp_path / name), helper(content, name)):
                assert (film.reason, film.view) == (reason, "PA")
                assert film.study_key == hasher.study_key("1.2") and film.patient_key == hasher.patient_key("PH-0042")
                assert film.instance_key == hasher.instance_key("1.2.3")


def test_threads_share_a_helper(films: Path):
    with DECODER.helper() as helper, ThreadPoolExecutor(3) as threads:
        found = list(threads.map(helper, _all(films)))
    for path, film in zip(_all(films), found, strict=True):
        np.testing.assert_array_equal(film.pixels, DECODER(path).pixels)


def test_a_film_that_waits_for_ever_is_given_up_by_the_clock(films: Path, monkeypatch):
    monkeypatch.setattr(helper_module, "PATIENCE", 1)
    decoder = DozingDecoder(DECODER.spec, GatePolicy(max_seconds=0.5), seconds=3600)
    with decoder.helper() as helper:
        assert helper(films / "film_0.png").reason == "too_slow"


def test_a_busy_machine_makes_no_film_too_slow(films: Path):
    decoder = DozingDecoder(DECODER.spec, GatePolicy(max_seconds=0.5))
    with decoder.helper() as helper:
        assert helper(films / "film_0.png").status == "scored"


ORPHAN = """
import sys, threading, time
from pathlib import Path
from tests.preprocessing.test_decode import _fragile
helper = _fragile(max_seconds=1.0).helper()
helper.start()
threading.Thread(target=helper, args=(Path("film_5.png"),), daemon=True).start()
print(helper._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
def test_a_helper_in_a_film_without_end_does_not_outlive_a_killed_parent():
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        helper = Path("/proc") / parent.stdout.readline().strip()
        assert helper.exists()
        parent.kill()
    deadline = time.monotonic() + 20
    while helper.exists() and "zombie" not in (helper / "status").read_text():
        assert time.monotonic() < deadline, "the helper goes on"
        time.sleep(0.1)


def test_an_unforeseen_failure_is_a_refusal_without_its_text(films: Path, monkeypatch):
    def fail(*_: object, **__: object) -> DecodedImage:
        raise RuntimeError("Phantom^Thora")

    monkeypatch.setattr(decode, "read_image", fail)
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


def test_a_single_film_is_decoded_elsewhere_too(films: Path):
    with Decoders(_fragile(), 4, images=1) as decoders:
        ((_, film),) = decoders.decode([films / "film_3.png"], ahead=2)
        assert len(decoders._helpers) == 1
    assert (film.reason, "the decoder crashed" in film.message) == ("cannot_decode", True)


def test_no_process_starts_where_there_is_nothing_to_decode():
    with Decoders(DECODER, 4, images=0) as decoders:
        assert list(decoders.decode([], ahead=2)) == decoders._helpers == []

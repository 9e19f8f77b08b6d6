"""An image that is asked for while another is read: the last one wins, whatever ends first."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsd.apps.web import markup, server
from medsd.apps.web.reading import Reader, Reading, Wish
from medsd.bundle.layout import Bundle
from medsd.studies.phantom import generate_study
from tests.apps.visit import Browser
from tests.studies.images import write_png

server.prepare_environment()
gr = pytest.importorskip("gradio")

from medsd.apps.web.desk import Desk, Scene  # noqa: E402
from medsd.apps.web.seat import Asked, Seat  # noqa: E402
from tests.apps.scenes import NOTHING, read  # noqa: E402


class Gates:
    """A model that answers when it is told to.

    Args:
        predict: the model behind it.
    """

    def __init__(self, predict: Callable[..., Any]) -> None:
        self.predict = predict
        self.entered: dict[bytes, threading.Event] = {}
        self.open: dict[bytes, threading.Event] = {}

    def hold(self, *contents: bytes) -> None:
        for content in contents:
            self.entered[content], self.open[content] = threading.Event(), threading.Event()

    def __call__(self, content: Any, note: str | None) -> Any:
        said = self.predict(content, note)
        if content in self.open:
            self.entered[content].set()
            assert self.open[content].wait(60)
        return said


@pytest.fixture
def gates(reader: Reader) -> Gates:
    return Gates(reader._predict)


@pytest.fixture
def desk(reader: Reader, gates: Gates) -> Desk:
    return Desk(Reader(reader.bundle, gates, reader.index))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    def png(number: int) -> bytes:
        path = tmp_path_factory.mktemp("images") / "image.png"
        write_png(generate_study(number, seed=17, size=160), path)
        return path.read_bytes()

    return png(1), png(2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def _ask(desk: Desk, seat: Seat, content: bytes, tmp_path: Path) -> Scene:
    path = tmp_path / "upload.png"
    path.write_bytes(content)
    return desk.take_upload(str(path), "", seat)


def test_what_ends_after_a_later_image_was_dropped_is_not_shown(
    desk: Desk, gates: Gates, images: tuple[bytes, bytes], threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    first, second = images
    gates.hold(first, second)
    seat = Seat()
    _ask(desk, seat, first, tmp_path)
    early = threads.submit(read, desk, seat)
    assert gates.entered[first].wait(60)
    busy = _ask(desk, seat, second, tmp_path)
    assert "<table" not in busy.findings and busy.upload is None and busy.reading is None and seat.reading is None
    late = threads.submit(read, desk, seat)
    assert gates.entered[second].wait(60)
    gates.open[second].set()
    shown = late.result(60)
    gates.open[first].set()
    assert early.result(60) == NOTHING
    assert seat.reading is shown.reading and seat.asked is not None and seat.asked.content == second
    assert shown.reading.prediction.probabilities == desk.reader.read(second).prediction.probabilities


def test_of_many_that_wait_only_the_last_is_read(
    desk: Desk, images: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bytes | None] = []
    monkeypatch.setattr(
        desk.reader,
        "stages",
        lambda content, *about: begun.append(content) or Reader.stages(desk.reader, content, *about),
    )
    seat = Seat()
    for content in images:
        _ask(desk, seat, content, tmp_path)
    assert read(desk, seat).reading is seat.reading and read(desk, seat) == NOTHING
    assert begun == [images[1]]


def test_examples_notes_and_uploads_share_one_sequence(
    desk: Desk, gates: Gates, images: tuple[bytes, bytes], threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    seat = Seat()
    gates.hold(images[0])
    for later in (lambda: desk.take_example(0, seat), lambda: desk.take_note("short of breath", seat)):
        _ask(desk, seat, images[0], tmp_path)
        gates.open[images[0]].clear()
        gates.entered[images[0]].clear()
        early = threads.submit(read, desk, seat)
        assert gates.entered[images[0]].wait(60)
        later()
        asked = seat.asked
        gates.open[images[0]].set()
        assert early.result(60) == NOTHING and read(desk, seat).reading is seat.reading and seat.asked is asked


def test_a_coverage_that_is_chosen_while_an_image_is_read_holds_for_it(
    desk: Desk, gates: Gates, images: tuple[bytes, bytes], threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    seat = Seat()
    gates.hold(images[0])
    _ask(desk, seat, images[0], tmp_path)
    reading = threads.submit(read, desk, seat, 0, *([[]] * 6))
    assert gates.entered[images[0]].wait(60)
    assert desk.again(seat, None, 90, *([[]] * 6)) == (gr.skip(),) * 4
    gates.open[images[0]].set()
    shown = reading.result(60)
    assert shown.reading.prediction.coverage == 0.9 and "90 %" in shown.findings


def test_other_calls_for_an_earlier_image_come_too_late(
    desk: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat, again = Seat(reading), desk.reader.again

    def slow(reading: Reading, wish: Wish) -> Reading:
        seat.ask(Asked(b"another image"))
        return again(reading, wish)

    monkeypatch.setattr(desk.reader, "again", slow)
    assert desk.again(seat, None, 90, *([[]] * 6)) == (gr.skip(),) * 4 and seat.reading is None


def test_an_image_that_waits_to_be_decoded_is_left_out_when_a_later_one_is_dropped(
    reader: Reader,
    images: tuple[bytes, bytes],
    threads: ThreadPoolExecutor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (first, second), gate, decoded = images, threading.Event(), []

    def decode(content: bytes, name: str) -> Any:
        decoded.append(content)
        assert reader._decode is not None and gate.wait(60)
        return reader._decode(content, name)

    desk, seat = Desk(Reader(reader.bundle, reader._predict, reader.index, decode=decode)), Seat()
    for _ in range(2):  # others, who keep both threads busy
        _ask(desk, Seat(), second, tmp_path)
    _ask(desk, seat, first, tmp_path)
    early = threads.submit(read, desk, seat)
    while seat._waiting:  # until it is claimed
        time.sleep(0.01)
    _ask(desk, seat, second, tmp_path)
    assert early.result(60) == NOTHING
    gate.set()
    shown = read(desk, seat)
    assert first not in decoded and decoded.count(second) == 3
    assert shown.reading.prediction.probabilities == reader.read(second).prediction.probabilities
    assert seat.asked is not None and seat.asked.begun is None and "could not be read" not in caplog.text


def test_of_two_choices_of_coverage_the_later_is_shown(desk: Desk, reading: Reading) -> None:
    seat, first, second = Seat(reading), Wish(0.9), Wish()
    seat.wish = first
    seat.wish = second
    later, earlier = replace(reading, read="later"), replace(reading, read="earlier")
    assert seat.put(None, second, later) is seat.reading and seat.put(None, first, earlier) is None
    assert seat.reading is not None and seat.reading.read == "later"


def test_every_pixel_of_an_earlier_image_comes_too_late(
    desk: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat, event = Seat(reading), gr.EventData(None, {"detail": reading.key})

    def slow(*_: object) -> str:
        seat.ask(Asked(b"another image"))
        return "the earlier image"

    monkeypatch.setattr(Reading, "every_pixel", np.zeros((2, 2), np.float32))
    monkeypatch.setattr(markup, "pixels_alone", lambda *_: "the image")
    assert desk.detail(seat, event) == "the image"
    monkeypatch.setattr(markup, "pixels_alone", slow)
    assert desk.detail(seat, event) == desk.detail(seat, event) == gr.skip()


def test_a_row_that_was_chosen_before_another_is_not_shown_after_it(
    desk: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat, (first, second) = Seat(reading), reading.ranked[:2]
    evidence = markup.evidence

    def click(name: str) -> Any:
        return desk.choose(seat, gr.EventData(None, {"finding": name}))

    def interrupted(*about: Any) -> str:
        monkeypatch.setattr(markup, "evidence", evidence)
        assert click(second)[2] == second
        return evidence(*about)

    monkeypatch.setattr(markup, "evidence", interrupted)
    assert click(first) == (gr.skip(),) * 3


def test_two_opinions_at_once_are_both_kept(reading: Reading) -> None:
    seat = Seat(reading)
    seat.agree(None, "Mass", "absent")
    both = seat.agree(None, "Effusion", "present")
    assert both is not None and both.opinions == {"Mass": "absent", "Effusion": "present"}
    assert seat.put(None, seat.wish, reading).opinions == both.opinions  # type: ignore[union-attr]
    assert Seat(reading).agree(Asked(b""), "Mass", "absent") is None


def test_everybody_begins_with_an_empty_seat(reading: Reading) -> None:
    assert deepcopy(Seat(reading)).reading is None


@pytest.fixture
def address(bundle: Bundle, reader: Reader, gates: Gates) -> Iterator[str]:
    page = server.launch(Reader(bundle, gates, reader.index), port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


class Ear(threading.Thread):
    """Hears what the server says to a session until nothing of it is left in the queue."""

    def __init__(self, browser: Browser) -> None:
        super().__init__(daemon=True)
        self.browser = browser
        self.heard: list[dict[str, Any]] = []

    def run(self) -> None:
        where = {"params": {"session_hash": self.browser.session}}
        with self.browser.client.stream("GET", "/gradio_api/queue/data", **where) as stream:  # type: ignore[arg-type]
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    self.heard.append(json.loads(line[5:]))

    def is_done(self, event: str) -> bool:
        return any(said["msg"] == "process_completed" and said["event_id"] == event for said in self.heard)

    def tables(self) -> list[set[str]]:
        """The findings of each message that has some."""
        shown = (re.findall(r'data-probability=\\?"([\d.]+)', json.dumps(said)) for said in self.heard)
        return [set(table) for table in shown if table]


def test_a_server_with_two_images_in_flight_shows_the_last_one(
    address: str, gates: Gates, images: tuple[bytes, bytes], reader: Reader
) -> None:
    browser, ears = Browser(address, "inflight"), []  # type: ignore[var-annotated]

    def join(call: dict[str, Any], *data: Any) -> str:
        event = browser.join(call, *data)
        if not ears or not ears[-1].is_alive():
            ears.append(Ear(browser))
            ears[-1].start()
        return event

    gates.hold(*images)
    for content in images:
        taken = join(browser.calls["upload"], browser.file("image.png", content), "")
        for call in browser.after(browser.calls["upload"]):
            _wait(lambda taken=taken: ears[-1].is_done(taken))  # type: ignore[misc]
            if content == images[0]:
                ears[-1].join(60)  # nothing else is in flight
            join(call)
        assert gates.entered[content].wait(60)
    gates.open[images[1]].set()
    _wait(lambda: any(ear.tables() for ear in ears))
    gates.open[images[0]].set()
    for ear in ears:
        ear.join(60)
    expected = {f"{value:.6f}" for value in reader.read(images[1]).prediction.probabilities.values()}
    tables = [table for ear in ears for table in ear.tables()]
    assert tables and all(table == expected for table in tables)


def _wait(until: Callable[[], bool]) -> None:
    for _ in range(6000):
        if until():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")

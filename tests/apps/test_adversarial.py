"""Whatever a person does, in whatever order answers come: image, findings, evidence, cases and exports belong together.

Tabs of one user and of another do things at once, at random: uploads, examples, notes, coverages, filters, boxes, cases
taken for the query, rows and opinions. Each tab shows what the server's handlers answer, as the page would.
"""

from __future__ import annotations

import base64
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web.reading import Reader
from medsd.apps.web.server import prepare_environment
from medsd.inference.prediction import Prediction
from medsd.studies.phantom import generate_study
from tests.studies.images import write_png

prepare_environment()
gr = pytest.importorskip("gradio")

from medsd.apps.web.desk import Desk, Scene  # noqa: E402
from medsd.apps.web.seat import Seat  # noqa: E402

ROUNDS = 200
NOTES = ("", "short of breath")
BOX = [0.2, 0.2, 0.7, 0.8]
NO_FILTER: tuple[list[str], ...] = ([],) * 6
AGAIN = ("reading", "evidence", "findings", "cases")
Said = dict[tuple[bytes | None, str], Prediction]


class Model:
    """What a model said of a few studies, after as long as it takes."""

    def __init__(self, said: Said, seed: int) -> None:
        self.said, self._chance = said, random.Random(seed)

    def __call__(self, content: bytes | None, note: str | None) -> Prediction:
        time.sleep(self._chance.random() * 0.004)
        return self.said[content, note or ""]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        write_png(generate_study(number, seed=29, size=96), folder / f"{number}.png")
    return [(folder / f"{number}.png").read_bytes() for number in range(3)]


@pytest.fixture(scope="module")
def said(reader: Reader, images: list[bytes]) -> Said:
    contents = [*images, *(example.path.read_bytes() for example in reader.examples)]
    notes = {*NOTES, *(example.note for example in reader.examples)}
    found: Said = {(content, note): reader._predict(content, note or None) for content in contents for note in notes}
    return found | {(None, note): reader._predict(None, note) for note in notes if note}


class Tab:
    """One tab of a browser.

    Args:
        desk: the server's handlers.
        delay: how long an answer is under way at most, s.
        seed: of what the person does.
    """

    def __init__(self, desk: Desk, folder: Path, delay: float, seed: int) -> None:
        self.desk, self.seat, self.chance = desk, Seat(), random.Random(seed)
        self.page: dict[str, Any] = {**dict.fromkeys(Scene._fields, ""), "reading": None, "shown": None}
        self._folder, self._delay, self._lock = folder, delay, threading.Lock()
        self._coverage, self._order = 0, threading.RLock()  # what a person does by hand is answered one after the other

    def show(self, names: Iterable[str], values: Iterable[Any]) -> None:
        """Take an answer."""
        time.sleep(self.chance.random() * self._delay)
        new = {name: value for name, value in zip(names, values, strict=True) if value != gr.skip()}
        with self._lock:
            self.page |= new

    def read(self, take: Callable[[], Scene]) -> None:
        with self._order:
            self.show(Scene._fields, take())
        for scene in self.desk.read(self.seat, self._coverage, *NO_FILTER):
            self.show(Scene._fields, scene)
        self.show(Scene._fields, scene)  # as Gradio does at the end

    def upload(self, content: bytes) -> None:
        path = self._folder / f"{self.chance.random()}.png"
        path.write_bytes(content)
        self.read(lambda: self.desk.take_upload(str(path), self.chance.choice(NOTES), self.seat))

    def example(self) -> None:
        self.read(lambda: self.desk.take_example(self.chance.randrange(2), self.seat))

    def note(self) -> None:
        self.read(lambda: self.desk.take_note(self.chance.choice(NOTES), self.seat))

    def cover(self) -> None:
        with self._order:
            self._coverage = self.chance.choice((0, 90, 95))
            self.show(AGAIN, self.desk.again(self.seat, self.page["shown"], self._coverage, *NO_FILTER))

    def click(self, handler: Any, names: Iterable[str], **said: Any) -> None:
        self.show(names, handler(self.seat, gr.EventData(None, said)))

    def near(self) -> None:
        key, cases = self.key, re.findall(r'data-like="([^"]+)"', str(self.page["cases"]))
        asked = [{"back": 1}, {"box": BOX, "key": key}, {"box": None, "key": key}, *({"like": case} for case in cases)]
        self.click(self.desk.near, ("reading", "cases"), **self.chance.choice(asked))

    def choose(self) -> None:
        names = re.findall(r'data-finding="([^"]+)"', str(self.page["findings"]))
        chosen = self.chance.choice(names or ["none"])
        self.click(self.desk.choose, ("evidence", "findings", "shown"), finding=chosen)

    @property
    def key(self) -> str:
        return "".join(re.findall(r'data-of="(\w*)"', str(self.page["image"]))[:1])

    def others(self) -> bool:
        """Whether a part is of another study than the image, so that the page hides it (scripts/match.js)."""
        return any(
            key != self.key
            for part in ("findings", "evidence", "cases")
            for key in re.findall(r'data-of="(\w+)"', str(self.page[part]))
        )

    def act(self, images: list[bytes]) -> Callable[[], None]:
        upload = self.chance.choice(images)
        acts = [
            lambda: self.upload(upload),
            lambda: self.upload(upload),
            self.example,
            self.note,
            self.cover,
            self.near,
        ]
        return self.chance.choice([*acts, self.choose, self.choose])


def _saved(tab: Tab) -> dict[str, Any]:
    link = tab.desk.export("JSON", tab.seat, None, None)
    return dict(json.loads(base64.b64decode(re.findall(r'data-content="([^"]+)"', link)[0])))


def _numbers(prediction: Prediction) -> list[str]:
    return sorted(f"{value:.6f}" for value in prediction.probabilities.values())


def _check(tab: Tab, said: Said) -> None:
    """That all that is in sight is of the study that was asked for last, and all of it is once the page has healed."""
    asked, reading = tab.seat.asked, tab.seat.reading
    if asked is None:
        return
    assert reading is not None and reading.stage == "whole"
    expected = said[asked.content, asked.note]
    assert _numbers(reading.prediction) == _numbers(expected)
    saved = {finding["name"]: finding["probability"] for finding in _saved(tab)["findings"]}
    assert saved == pytest.approx(expected.probabilities, abs=1e-4)
    if tab.others():
        tab.show(Scene._fields, tab.desk.anew(tab.seat))
    assert tab.key == reading.key and not tab.others() and tab.page["note"] == asked.note
    assert sorted(re.findall(r'data-probability="([\d.]+)"', str(tab.page["findings"]))) == _numbers(expected)
    assert tab.page["reading"].key == reading.key and "<li" in tab.page["cases"]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_two_hundred_rounds_on_tabs_of_two_users_mix_nothing_up(
    reader: Reader,
    said: Said,
    images: list[bytes],
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    delay: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("medsd.apps.web.reading.ALIKE_S", 0.0)
    monkeypatch.setattr(gr, "Warning", lambda _: None)
    desk, chance = Desk(Reader(reader.bundle, Model(said, 1), reader.index)), random.Random(int(delay * 1000))
    tabs = [Tab(desk, tmp_path, delay, seed) for seed in range(3)]  # two of one user, one of another
    for _ in range(ROUNDS // 2):  # as many with and without a delay
        acting: list[Future[None]] = []
        for _ in range(chance.randint(2, 5)):
            acting.append(pool.submit(chance.choice(tabs).act(images)))
            time.sleep(chance.random() * 0.004)
        for each in acting:
            each.result(60)
        for tab in tabs:
            _check(tab, said)
    assert all(tab.seat.asked is not None for tab in tabs)

"""Two people at once, one of them with two tabs, in a real browser: each sees what is theirs, and all of one study.

Who they are, what they drop, write and click, and in which order is drawn from one seed. How fast the server answers is
not: whatever stands on a page at any moment must be of one study.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from medsd.apps.web import server
from medsd.apps.web.greys import LARGEST
from medsd.apps.web.reading import Reader, Reading
from medsd.bundle.layout import Bundle
from medsd.inference.words import impression
from medsd.privacy import KEY_VARIABLE
from medsd.studies.phantom import generate_study
from tests.apps.reading_room import KEY
from tests.apps.test_adversarial import Model, Said
from tests.browser.conftest import Visit
from tests.studies.images import write_png

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
NOTES = {"Hers": ("", "short of breath", "cough for a week"), "His": ("", "fever", "fell from a ladder")}
# In every frame: a part in sight that is of another study than the image, or beside the name of a file that is sent.
WATCH = """() => {
  window.mixed = [];
  const look = () => {
    const key = document.querySelector('#radiograph [data-of]')?.dataset.of;
    const sent = document.querySelector('#upload').innerText.includes('Canary');
    for (const part of document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')) {
      const seen = part.checkVisibility({visibilityProperty: true});
      if (seen && (sent || part.dataset.of !== key)) mixed.push([part.className, sent]);
    }
    requestAnimationFrame(look);
  };
  look();
}"""
# What stands on a page where a study is read to its end; null before.
SEEN = """() => {
  const stage = document.querySelector('#stage'), key = document.querySelector('#radiograph [data-of]')?.dataset.of;
  const parts = [...document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')];
  const rows = [...document.querySelectorAll('tr[data-probability]')];
  const rank = (card) => Number(card.querySelector('.rank').innerText);
  const cards = [...document.querySelectorAll('#cases li.case')].sort((one, other) => rank(one) - rank(other));
  if (!key || !rows.length || !cards.length || parts.some((part) => part.dataset.of !== key)) return null;
  if (document.querySelector('.spinner') || !document.querySelector('#upload input[type=file]')) return null;
  const picture = stage.classList.contains('bare') ? null : stage.viewer.picture();
  if (picture ? picture.key !== key : document.querySelector('#radiograph [data-key]')) return null; // it is on its way
  return {
    key, image: picture ? picture.values.reduce((sum, grey) => sum + grey, 0) : null,
    note: document.querySelector('.noted').title, written: document.querySelector('#note textarea').value,
    impression: document.querySelector('.impression').innerText,
    probabilities: Object.fromEntries(rows.map((row) => [row.dataset.name, row.dataset.probability])),
    cases: cards.map((card) => card.querySelector('[data-pin]').dataset.pin),
    back: Boolean(document.querySelector('#cases [data-back]')),
    names: document.body.innerHTML.match(/Canary\\w*/g) || [],
  };
}"""
CLICK = """([every, share]) => {
  const found = [...document.querySelectorAll(every)];
  found[Math.floor(share * found.length)]?.click();
}"""


class Person(NamedTuple):
    """Somebody before the page.

    Attributes:
        name: begins the names of the files.
        files: the person's own images.
        readings: what may stand on the person's pages, by the sum of the image's grey values and by the note.
    """

    name: str
    files: list[Path]
    readings: dict[tuple[int, str], Reading]


@pytest.fixture(scope="module")
def reader(room: Bundle) -> Reader:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        return server.open_reader(room)


@pytest.fixture(scope="module")
def said(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Person], Said]:
    """Both people, and what the model says of all that they may have read."""
    folder, people, said = tmp_path_factory.mktemp("images"), [], Said()
    for start, (name, notes) in enumerate(NOTES.items()):
        files = [folder / f"Canary{name}{number}.png" for number in range(3)]
        for number, file in enumerate(files):
            write_png(generate_study(3 * start + number, seed=37, size=128), file)
        contents = [path.read_bytes() for path in (*files, *(example.path for example in reader.examples))]
        pairs = [(content, note) for content in contents for note in {*notes, *(each.note for each in reader.examples)}]
        said |= {(content, note): reader._predict(content, note or None) for content, note in pairs}
        told = Reader(reader.bundle, Model(said, 1), reader.index)
        readings = [told.read(*pair) for pair in pairs]
        people.append(Person(name, files, {(_greys(reading), reading.note): reading for reading in readings}))
        assert len(people[-1].readings) == len(pairs)
    return people, said


def _greys(reading: Reading) -> int:
    assert reading.display is not None
    return int(np.rint(reading.display * LARGEST).astype(np.int64).sum())


@pytest.fixture(scope="module")
def address(chromium: Any, reader: Reader, said: tuple[list[Person], Said]) -> Iterator[str]:
    page = server.launch(Reader(reader.bundle, Model(said[1], 1), reader.index), port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


def _act(here: Visit, person: Person, chance: random.Random) -> None:
    """Something that a person does, without waiting for what comes of it."""
    wanted, share = chance.choice(["drop", "drop", "example", "note", "finding", "like"]), chance.random()
    if wanted == "drop":
        here.drop_on_the_image(person.files[int(share * len(person.files))])
    elif wanted == "note":
        here.page.fill("#note textarea", NOTES[person.name][int(share * 3)])
        here.page.locator("#again").dispatch_event("click")
    else:
        buttons = {"example": "#examples button", "finding": "button[data-finding]", "like": "#cases [data-like]"}
        here.page.evaluate(CLICK, [buttons[wanted], share])


def _seen(here: Visit) -> dict[str, Any]:
    """What stands on a page that is at rest, with the nearest cases beside the image."""
    seen = None
    while True:
        before, seen = seen, here.page.wait_for_function(SEEN).json_value()
        if seen["back"]:
            here.page.evaluate(CLICK, ["#cases [data-back]", 0])
        elif seen == before:
            return dict(seen)
        here.page.wait_for_timeout(120)


def _check(here: Visit, person: Person, *, saved: bool) -> None:
    """That image, note, findings, cases and what is saved are of one study, and of the person before the page."""
    for _ in range(10):
        seen = _seen(here)
        reading = person.readings[seen["image"], seen["note"]]
        told = reading.prediction
        assert seen["probabilities"] == {name: f"{value:.6f}" for name, value in told.probabilities.items()}
        assert seen["impression"] == f"{impression(told, sum(vote.disagrees for vote in reading.votes))}."
        assert seen["cases"] == [case.case.study_key for case in reading.cases]
        assert seen["written"] in {note for _, note in person.readings} and seen["names"] == []
        assert here.page.evaluate("window.mixed") == [] and here.errors == []
        if not saved:
            return
        record = _save(here)
        if record is None or _seen(here) != seen:
            continue  # what was asked for last was read meanwhile
        numbers = {finding["name"]: finding["probability"] for finding in record["findings"]}
        assert numbers == pytest.approx(told.probabilities, abs=1e-4)
        assert f"{record['impression']}." == seen["impression"]
        assert [case["study_key"] for case in record["cases"]] == seen["cases"]
        return
    pytest.fail("the page never came to rest")


def _save(here: Visit) -> dict[str, Any] | None:
    """What is saved as JSON; None where the page says that another image was read meanwhile."""
    late = pytest.importorskip("playwright.sync_api").TimeoutError
    try:
        with here.page.expect_download(timeout=5000) as download:
            here.page.locator("#save-json").dispatch_event("click")
        return dict(json.loads(Path(download.value.path()).read_text(encoding="utf-8")))
    except late:
        return None


@pytest.mark.parametrize("rounds", [6, pytest.param(200, marks=pytest.mark.bench)])
def test_two_people_and_two_tabs_of_one_mix_nothing_up(
    visit: Open, said: tuple[list[Person], Said], rounds: int
) -> None:
    (hers, his), _ = said
    one = visit()
    tabs = [(one, hers), (visit(beside=one), hers), (visit(), his)]  # two cookies: two visitors
    for here, person in tabs:
        here.page.wait_for_function("document.querySelector('#stage')?.viewer")
        here.page.evaluate(WATCH)
        here.drop_on_the_image(person.files[0])
    chance = random.Random(19)
    for number in range(rounds):
        for _ in range(chance.randint(3, 6)):
            _act(*chance.choice(tabs), chance)
            one.page.wait_for_timeout(chance.random() * 60)
        for place, tab in enumerate(tabs):
            _check(*tab, saved=place == number % len(tabs))

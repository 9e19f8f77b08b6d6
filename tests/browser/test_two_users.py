"""Two people at once, one of them with two tabs, in a real browser: each sees what is theirs, and all of one study."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web import server
from medsd.apps.web.reading import Reader
from medsd.bundle.layout import Bundle
from medsd.privacy import KEY_VARIABLE
from medsd.studies.phantom import generate_study
from tests.apps.reading_room import KEY, SIDE
from tests.apps.test_adversarial import Model, Said
from tests.browser.conftest import Visit
from tests.studies.images import write_png

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
NOTES = ("", "short of breath", "fever and cough")
# In every frame: a part in sight that is of another study than the image. `match.js` hides it before it is drawn.
WATCH = """() => {
  window.mixed = [];
  const look = () => {
    const key = document.querySelector('#radiograph [data-of]')?.dataset.of;
    for (const part of document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')) {
      if (part.dataset.of !== key && part.checkVisibility({visibilityProperty: true})) mixed.push(part.className);
    }
    requestAnimationFrame(look);
  };
  look();
}"""
# What stands on a page where nothing is under way any more; null before.
SEEN = """() => {
  const key = document.querySelector('#radiograph [data-of]')?.dataset.of;
  const parts = [...document.querySelectorAll(':is(#findings, #cases, #evidence) [data-of]')];
  const rows = [...document.querySelectorAll('tr[data-probability]')], stage = document.querySelector('#stage');
  if (!key || !rows.length || !document.querySelector('#cases li.case')) return null;
  if (document.querySelector('.spinner')) return null;
  if (parts.some((part) => part.dataset.of !== key)) return null;
  return {
    key, width: stage.classList.contains('bare') ? 0 : stage.querySelector('canvas').width,
    note: document.querySelector('#note textarea').value, numbers: rows.map((row) => row.dataset.probability).sort(),
  };
}"""
CLICK = """([every, share]) => {
  const found = [...document.querySelectorAll(every)];
  found[Math.floor(share * found.length)]?.click();
}"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Six images by their width, which no two have in common: three of each person."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        write_png(generate_study(number, seed=37, size=96 + 8 * number), folder / f"{number}.png")
    return {96 + 8 * number: folder / f"{number}.png" for number in range(6)}


@pytest.fixture(scope="module")
def reader(room: Bundle) -> Reader:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        return server.open_reader(room)


@pytest.fixture(scope="module")
def said(reader: Reader, images: dict[int, Path]) -> Said:
    contents = [path.read_bytes() for path in [*images.values(), *(example.path for example in reader.examples)]]
    notes = {*NOTES, *(example.note for example in reader.examples)}
    found: Said = {(content, note): reader._predict(content, note or None) for content in contents for note in notes}
    return found | {(None, note): reader._predict(None, note) for note in notes if note}


@pytest.fixture(scope="module")
def address(chromium: Any, reader: Reader, said: Said) -> Iterator[str]:
    page = server.launch(Reader(reader.bundle, Model(said, 1), reader.index), port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


def _act(here: Visit, chance: random.Random, images: dict[int, Path]) -> None:
    """Something that a person does, without waiting for what comes of it."""
    page, wanted = here.page, chance.choice(["drop", "drop", "example", "note", "finding", "like"])
    if wanted == "drop" and page.locator("#upload input[type=file]").count():
        here.drop(chance.choice(list(images.values())))
    elif wanted == "example":
        page.locator("#examples button").nth(chance.randrange(2)).dispatch_event("click")
    elif wanted == "note":
        page.fill("#note textarea", chance.choice(NOTES[1:]))
        page.locator("#again").dispatch_event("click")
    else:
        buttons = {"finding": "button[data-finding]", "like": "#cases :is([data-like], [data-back])"}
        page.evaluate(CLICK, [buttons.get(wanted, "none"), chance.random()])


def _check(here: Visit, images: dict[int, Path], reader: Reader, said: Said, *, saved: bool) -> None:
    """That image, note, numbers and what is saved belong together, and to the person of the page."""
    seen = here.page.wait_for_function(SEEN, timeout=60_000).json_value()
    here.page.wait_for_timeout(100)
    seen = here.page.wait_for_function(SEEN, timeout=60_000).json_value()  # what came late counts, too
    examples = [example.path for example in reader.examples]
    paths = examples if seen["width"] == SIDE else [images[seen["width"]]] if seen["width"] else []
    contents: list[bytes | None] = [path.read_bytes() for path in paths]
    readings = [said[content, seen["note"]] for content in contents or [None]]
    numbers = [sorted(f"{value:.6f}" for value in reading.probabilities.values()) for reading in readings]
    assert seen["numbers"] in numbers
    assert here.page.evaluate("window.mixed") == [] and here.errors == []
    late = pytest.importorskip("playwright.sync_api").TimeoutError
    for _ in range(10 * saved):
        seen = here.page.wait_for_function(SEEN, timeout=60_000).json_value()
        try:
            with here.page.expect_download(timeout=10_000) as download:
                here.page.click("#save-json")
        except late:
            continue  # another study was read meanwhile, which the page says
        if here.page.evaluate(SEEN) == seen:
            findings = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["findings"]
            assert sorted(f"{finding['probability']:.6f}" for finding in findings) == seen["numbers"]
            return
    assert not saved, "the page never came to rest"


@pytest.mark.parametrize("rounds", [6, pytest.param(200, marks=pytest.mark.bench)])
def test_two_people_and_two_tabs_of_one_mix_nothing_up(
    visit: Open, address: str, images: dict[int, Path], reader: Reader, said: Said, rounds: int
) -> None:
    one, another = visit(), visit()  # of two contexts: two cookies, two sessions
    second = Visit(one.page.context.new_page())
    second.page.goto(address)
    hers, his = (dict(list(images.items())[start : start + 3]) for start in (0, 3))
    people = [(one, hers), (second, hers), (another, his)]
    for here, own in people:
        here.page.wait_for_selector("#upload input[type=file]", state="attached")
        here.page.evaluate(WATCH)
        here.read(own[min(own)])
    chance = random.Random(19)
    for number in range(rounds):
        for _ in range(chance.randint(3, 6)):
            here, own = chance.choice(people)
            _act(here, chance, own)
            here.page.wait_for_timeout(chance.random() * 60)
        for here, own in people:
            _check(here, own, reader, said, saved=number % 5 == 4)

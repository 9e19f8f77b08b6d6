"""Pictures of every state of the page, for eyes, with what can be measured of them.

    python -m tests.bench.look FOLDER --bundle models/phantom

Writes a picture of each state at each size, dark and light, and one sheet of all of a size; prints a table: how much of
the height the image has, how many cases are whole in sight, how many pixels the page is too wide, and what is cut.
Needs Chromium, which MEDSD_CHROMIUM names.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from medsd.bundle.layout import Bundle
from tests.browser.conftest import CHROMIUM, FLAGS, PATIENCE_MS, Visit
from tests.browser.states import ACROSS, CUT, Gate, running, states, write_files

SIZES = ("1920x1080", "1440x900", "1024x768", "390x844")
SCHEMES = ("dark", "light")
THUMBNAIL, COLUMNS, CAPTION = (480, 400), 6, 18  # px of a picture on a sheet; px of its caption
SIGHT = """() => {
  const whole = [...document.querySelectorAll('#cases li.case')].map((card) => card.getBoundingClientRect())
    .filter((box) => box.width && Math.min(box.left, box.top) >= 0)
    .filter((box) => box.right <= innerWidth && box.bottom <= innerHeight);
  return [document.querySelector('#stage').getBoundingClientRect().height / innerHeight, whole.length];
}"""


class Seen(NamedTuple):
    """A state at a size in a scheme."""

    size: str
    scheme: str
    state: str
    picture: Path
    share: float  # of the height, that the image has
    cases: int
    wide: int
    cut: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, default=Path("models/phantom"))
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        files = write_files(Path(made), size=1000)
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        for size in options.sizes:
            seen: list[Seen] = []
            for scheme in options.schemes:
                # A server for each: what was opined on an image in one visit is no state of the next.
                with running(Bundle.open(options.bundle), Path(made, f"{size}-{scheme}")) as (address, gate):
                    seen += _look(browser, address, gate, files, size, scheme, options.folder)
            _sheet(seen, options.folder / f"{size}.png")
        browser.close()


def _look(
    browser: Any, address: str, gate: Gate, files: list[Path], size: str, scheme: str, folder: Path
) -> list[Seen]:
    """All states of a page, each as a picture and as a line of the table."""
    width, height = map(int, size.split("x"))
    context = browser.new_context(viewport={"width": width, "height": height})
    context.add_init_script(f"localStorage.setItem('look', '{scheme}')")
    here, found = Visit(context.new_page()), []
    here.page.set_default_timeout(PATIENCE_MS)
    here.page.goto(address)
    for number, state in enumerate(states(here, files, gate), 1):
        here.page.wait_for_timeout(300)
        picture = folder / f"{size}-{scheme}" / f"{number:02d}-{state.replace(' ', '-').replace(',', '')}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        here.page.screenshot(path=picture)
        about = *here.page.evaluate(SIGHT), here.page.evaluate(ACROSS), here.page.evaluate(CUT)
        found.append(Seen(size, scheme, state, picture, *about))
        _print(found[-1])
    context.close()
    return found


def _print(seen: Seen) -> None:
    share = f"{seen.share:.0%}" if seen.share else "–"
    wide = f"{seen.wide} px too wide" if seen.wide > 0 else ""
    cut = f"cut: {seen.cut[:3]}" if seen.cut else ""
    print(f"{seen.size:9} {seen.scheme:5} {seen.state:28} image {share:>4} cases {seen.cases} {wide} {cut}", flush=True)


def _sheet(seen: list[Seen], path: Path) -> None:
    """All pictures of a size on one."""
    width, height = THUMBNAIL[0], THUMBNAIL[1] + CAPTION
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(seen) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, each in enumerate(seen):
        x, y = place % COLUMNS * width, place // COLUMNS * height
        with Image.open(each.picture) as picture:
            picture.thumbnail((width - 8, THUMBNAIL[1]))
            sheet.paste(picture, (x, y + CAPTION))
        draw.text((x, y + 2), f"{each.scheme}: {each.state}", fill="black")
    sheet.save(path)


if __name__ == "__main__":
    main()

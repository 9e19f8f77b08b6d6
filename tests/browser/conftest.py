"""A running app, and a real Chromium that notices errors and requests to elsewhere.

MEDSD_CHROMIUM names the browser (default /usr/bin/chromium), MEDSD_BUNDLE another bundle than the tiny one,
MEDSD_SCREENSHOTS a folder in which the pictures stay.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medsd.apps.web import server
from medsd.bundle.layout import Bundle
from medsd.privacy import KEY_VARIABLE
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import KEY, furnish

CHROMIUM = Path(os.environ.get("MEDSD_CHROMIUM") or "/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PATIENCE_MS = 120_000  # a loaded machine is no reason to fail
DROP = """([content, name]) => {
  const moved = new DataTransfer();
  moved.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name));
  document.querySelector('#stage').dispatchEvent(
    new DragEvent('drop', {dataTransfer: moved, bubbles: true, cancelable: true}));
}"""


@dataclass
class Visit:
    """One page of the app, and what it complained about."""

    page: Any
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def drop(self, file: Path) -> None:
        self.page.set_input_files("#upload input[type=file]", str(file))

    def drop_on_the_image(self, file: Path) -> None:
        """Drop a file beside the drop zone, which may be sending another."""
        self.page.evaluate(DROP, [base64.b64encode(file.read_bytes()).decode(), file.name])

    def read(self, file: Path) -> None:
        """Drop an image and wait for its findings and cases."""
        self.drop(file)
        self.whole()

    def whole(self) -> None:
        """Wait until a study is read to its end."""
        self.page.wait_for_selector("table.findings tbody tr")
        self.page.wait_for_function("!document.querySelector('#cases').innerText.includes('Searching')")

    def fits(self) -> None:
        """Fails where a page that has read an image is too wide, or its image or findings have the wrong place."""
        self.page.wait_for_timeout(300)
        width = self.page.evaluate("window.innerWidth")
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert "no medical device" in self.page.inner_text("header.bar")
        image, table = (self.page.locator(part).bounding_box() for part in ("#stage", "table.findings"))
        assert image["width"] > 0.4 * width and table["x"] + table["width"] <= width

    def open_tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.is_visible():  # on a narrow screen
            self.page.get_by_label("More tabs").click()
            tab = self.page.get_by_role("button", name=name, exact=True)
        tab.click()

    def picture(self, selector: str) -> str:
        return str(self.page.get_attribute(selector, "src"))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="browser: playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"browser: no Chromium at {CHROMIUM}; install it, or name it in MEDSD_CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that the app shows."""
    given = os.environ.get("MEDSD_BUNDLE")
    return Bundle.open(given) if given else furnish(tmp_path_factory.mktemp("bundle") / "room")


@pytest.fixture(scope="session")
def address(chromium: Any, room: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        reader = server.open_reader(room, feedback=tmp_path_factory.mktemp("feedback"))
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Visit]]:
    """Opens the app: ``visit(size=(1280, 900), scheme="dark")``, as another visitor, or in a tab beside another."""
    contexts: list[Any] = []

    def open_page(size: tuple[int, int] = (1280, 900), scheme: str = "dark", beside: Visit | None = None) -> Visit:
        if beside is None:
            viewport = {"width": size[0], "height": size[1]}
            contexts.append(chromium.new_context(viewport=viewport, accept_downloads=True))
            if scheme == "light":
                contexts[-1].add_init_script("localStorage.setItem('look', 'light')")
        here = Visit((beside.page.context if beside else contexts[-1]).new_page())
        here.page.set_default_timeout(PATIENCE_MS)
        here.page.on("console", lambda said: here.errors.append(said.text) if said.type == "error" else None)
        here.page.on("pageerror", lambda error: here.errors.append(str(error)))
        here.page.on("request", lambda asked: here.elsewhere.append(asked.url) if _outside(asked.url) else None)
        here.page.goto(address)
        here.page.wait_for_selector("#upload input[type=file]", state="attached")
        return here

    def _outside(url: str) -> bool:
        return not url.startswith((address, "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM file that no case was made of."""
    path = tmp_path_factory.mktemp("image") / "image.dcm"
    write_dicom(generate_study(31, seed=11, size=640), path)
    return path


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    given = os.environ.get("MEDSD_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder

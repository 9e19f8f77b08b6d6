"""What a person can see and do: small screens, the wheel, contrast, and evidence that is hidden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.conftest import Visit

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3, for text of usual size

# Every piece of text in sight against what lies behind it, by the formula of WCAG 2.2: [ratio, text] below a bound.
PALE = """least => {
  const numbers = (colour) => {
    const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, i) => value * a + under[i] * (1 - a));
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const layer = numbers(getComputedStyle(at).backgroundColor);
      layers.push(layer);
      if (layer[3] === 1) break;
    }
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((value) => value / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const pale = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (!text || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (element.closest('script, style, .legend, [aria-hidden=true]') || !element.getClientRects().length) continue;
    const back = behind(element), [a, b] = [light(back), light(over(numbers(getComputedStyle(element).color), back))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least) pale.push([Math.round(ratio * 100) / 100, text.slice(0, 60)]);
  }
  return pale;
}"""


def test_the_whole_image_is_seen_on_a_phone(visit: Open, image: Path, shots: Path) -> None:
    here = visit((390, 844), "light")
    here.read(image)
    here.page.screenshot(path=shots / "phone.png", full_page=True)
    area, picture, legend = (
        here.page.locator(part).bounding_box() for part in ("#stage", "#stage canvas", "#stage .legend")
    )
    for part in (picture, legend):
        assert part["x"] >= area["x"] - 1 and part["x"] + part["width"] <= area["x"] + area["width"] + 1 <= 391
        assert part["y"] >= area["y"] - 1 and part["y"] + part["height"] <= area["y"] + area["height"] + 1
    table = here.page.locator("table.findings").bounding_box()
    assert table["x"] + table["width"] <= 390 >= here.page.evaluate("document.documentElement.scrollWidth")


def test_nothing_of_the_first_screen_is_cut(visit: Open, shots: Path) -> None:
    here = visit()
    for width, height in ((390, 844), (820, 1180), (1024, 768), (1440, 900)):
        here.page.set_viewport_size({"width": width, "height": height})
        here.page.screenshot(path=shots / f"first-{width}.png")
        cut = "(first => first.scrollHeight > first.clientHeight)(document.querySelector('.first'))"
        assert not here.page.evaluate(cut), width
        assert here.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), width


def test_the_wheel_over_the_image_scrolls_the_page(visit: Open, image: Path) -> None:
    here = visit()
    here.read(image)
    for width, height in ((390, 844), (1280, 720)):
        here.page.set_viewport_size({"width": width, "height": height})
        here.page.evaluate("scrollTo(0, 0)")
        here.page.locator("#stage").scroll_into_view_if_needed()
        before, box = here.page.evaluate("window.scrollY"), here.page.locator("#stage").bounding_box()
        here.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        here.page.mouse.wheel(0, 200)
        here.page.wait_for_function("before => window.scrollY >= before + 150", arg=before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(visit: Open, image: Path, scheme: str) -> None:
    here = visit(scheme=scheme)
    here.page.wait_for_selector("#upload >> text=Drop File Here")
    assert here.page.evaluate(PALE, LEAST_CONTRAST) == []
    here.read(image)
    assert here.page.evaluate(PALE, LEAST_CONTRAST) == []

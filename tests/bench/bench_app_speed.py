"""How long a person waits in the app, in a real browser: from a dropped file to its image, its findings and its cases.

    python -m tests.bench.bench_app_speed models/phantom

Medians over ten DICOM files of 2,000 × 2,000 pixels, each another image. The bounds are for two idle cores. Needs
Chromium, which MEDSD_CHROMIUM names.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from medsd.studies.phantom import generate_study, write_dicom

BOUNDS_S = {"image": 0.7, "findings": 1.5, "cases": 2.0}
FILES, SIDE = 10, 2000
CHROMIUM = os.environ.get("MEDSD_CHROMIUM") or "/usr/bin/chromium"
# When each part of the page is there, from the moment when the file is given to the page, in seconds.
WATCH = """() => {
  const parts = {
    image: () => !document.querySelector('#stage').classList.contains('bare'),
    findings: () => document.querySelector('table.findings tr[data-name]'),
    cases: () => document.querySelector('#cases li.case'),
  };
  const begun = performance.now();
  window.took = {};
  const look = () => {
    const cleared = window.cleared ||= !parts.image() && !parts.findings();
    for (const [name, there] of Object.entries(parts)) {
      if (cleared && !(name in took) && there()) took[name] = (performance.now() - begun) / 1000;
    }
    if (Object.keys(took).length < 3) requestAnimationFrame(look);
  };
  window.cleared = false;
  look();
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("models/phantom"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.dcm") for number in range(FILES + 1)]
        for number, file in enumerate(files):
            write_dicom(generate_study(number, seed=61, size=SIDE), file)
        command = [sys.executable, "-m", "medsd.cli", "app", str(options.bundle), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
            assert app.stdout is not None
            address = next(word for word in app.stdout.readline().split() if word.startswith("http"))
            try:
                took = _drop_all(address, files)[1:]  # the first opens the case index
            finally:
                app.terminate()
    slow = False
    for part, bound in BOUNDS_S.items():
        seconds = [each[part] for each in took]
        median = float(np.median(seconds))
        slow |= median > bound
        print(f"{part:9} {median:.2f} s, from {min(seconds):.2f} to {max(seconds):.2f}; bound {bound} s")
    return int(slow)


def _drop_all(address: str, files: list[Path]) -> list[dict[str, float]]:
    """For each file, after how many seconds each part was there."""
    from playwright.sync_api import sync_playwright

    took: list[dict[str, float]] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page: Any = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(address)
        for file in files:
            page.wait_for_selector("#upload input[type=file]", state="attached")
            page.evaluate(WATCH)
            page.set_input_files("#upload input[type=file]", str(file))
            page.wait_for_function("Object.keys(took).length === 3", timeout=120_000)
            took.append(page.evaluate("took"))
        browser.close()
    return took


if __name__ == "__main__":
    sys.exit(main())

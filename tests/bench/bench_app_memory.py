"""The memory of the app over many readings: does it rise for ever, or level off?

    python -m tests.bench.bench_app_memory models/phantom --readings 1000

Every reading is another image. By default each comes from a new page, as from so many visitors: the app keeps the
readings of the last 32 pages, so its memory rises until then. With ``--one-page`` all come from one page. The bound is
on what the second half of the readings adds, per reading.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from medsd.apps.web.server import SESSIONS
from medsd.studies.phantom import generate_study
from tests.apps.visit import Browser
from tests.studies.images import write_png

MOST_KB_A_READING = 50.0
IMAGES = 40  # different ones, so that nothing is read from a cache of one image


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("models/phantom"))
    parser.add_argument("--readings", type=int, default=1000)
    parser.add_argument("--one-page", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = [_image(number, Path(folder)) for number in range(IMAGES)]
        command = [sys.executable, "-m", "medsd.cli", "app", str(options.bundle), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
            assert app.stdout is not None
            address = next(word for word in app.stdout.readline().split() if word.startswith("http"))
            try:
                used = _read_all(app.pid, address, images, options.readings, one_page=options.one_page)
            finally:
                app.terminate()
    half = used[len(used) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1000
    print(f"second half of {len(used)} readings: {slope:+.1f} KB a reading (bound {MOST_KB_A_READING:g})")
    return 0 if slope <= MOST_KB_A_READING else 1


def _read_all(pid: int, address: str, images: list[bytes], readings: int, *, one_page: bool) -> list[float]:
    """The resident memory of the app in MB after each reading."""
    used, visitor = [], Browser(address, "page")
    for number in range(readings):
        session = "page" if one_page else f"page{number}"
        visitor.read("image.png", images[number % len(images)], session=session)
        used.append(_megabytes(pid))
        if number + 1 in (1, 10, SESSIONS, 100) or (number + 1) % 100 == 0:
            print(f"{number + 1:>6} readings: {used[-1]:.0f} MB", flush=True)
    return used


def _megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _image(number: int, folder: Path) -> bytes:
    path = folder / f"{number}.png"
    write_png(generate_study(number, seed=17, size=512), path)
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())

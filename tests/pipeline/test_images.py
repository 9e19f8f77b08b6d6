"""Films decoded into one file: going on after a kill, refusals, and what the file is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medsd.findings import finding_set
from medsd.pipeline import images
from medsd.pipeline.images import decode_images
from medsd.preprocessing.image import read_image
from medsd.settings import PixelSpec
from medsd.studies.manifest import Manifest, complete
from medsd.studies.rejected import TooManyRejected

NIH14, SPEC = finding_set("nih14"), PixelSpec(size=32)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Ten images, of which the third is cut short, and a note alone; three to a portion."""
    monkeypatch.setattr(images, "PORTION", 3)
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray((rng.random((80, 80)) * 255).astype(np.uint8)).save(tmp_path / f"p{number}.png")
    (tmp_path / "p2.png").write_bytes((tmp_path / "p2.png").read_bytes()[:500])
    paths = [*(f"p{number}.png" for number in range(10)), None]
    table = pd.DataFrame(
        {"study": [f"s{n}" for n in range(11)], "patient": [f"p{n}" for n in range(11)], "path": paths}
    )
    return Manifest(complete(table, NIH14), NIH14, tmp_path, source_rows=np.arange(11) + 1)


def test_the_file_holds_the_images_in_order_as_serving_reads_them(manifest: Manifest, tmp_path: Path) -> None:
    decode_images(manifest, SPEC, tmp_path / "pixels.npy").finish()
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert pixels.shape == (10, 32, 32) and not pixels[-1].any()
    np.testing.assert_array_equal(pixels[2], read_image(tmp_path / "p3.png", SPEC).pixels)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_refused_image_is_listed_by_its_row_without_its_patient(manifest: Manifest, tmp_path: Path) -> None:
    assert [row for row, _, _ in decode_images(manifest, SPEC, tmp_path / "pixels.npy").refused] == [2]
    manifest.rejected.write(tmp_path / "rejected.csv")
    text = (tmp_path / "rejected.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "row,path,reason,message"
    assert '\n3,….png,cannot_decode,"….png: the pixel data cannot be decoded' in text and "p2" not in text


@pytest.mark.parametrize("torn", ["", '{"done": 9, "ref'])
def test_a_killed_run_goes_on_where_it_stopped(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    decode_images(manifest, SPEC, tmp_path / "whole.npy").finish()
    manifest.rejected.entries.clear()
    killed = decode_images(manifest, SPEC, tmp_path / "pixels.npy")
    journal = killed.journal.read_text(encoding="utf-8").splitlines()[:3]  # what it is made of, and two portions
    killed.journal.write_text("\n".join([*journal, torn]), encoding="utf-8")
    manifest.rejected.entries.clear()
    asked: list[str] = []
    decode_all = images.decode_all
    monkeypatch.setattr(
        images, "decode_all", lambda paths, *a, **k: decode_all((asked.append(p.name) or p for p in paths), *a, **k)
    )
    resumed = decode_images(manifest, SPEC, tmp_path / "pixels.npy")
    resumed.finish()
    assert asked == ["p6.png", "p7.png", "p8.png", "p9.png"] and len(manifest.rejected) == 1
    assert (tmp_path / "pixels.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_images_read_otherwise_or_others_are_begun_anew(manifest: Manifest, tmp_path: Path) -> None:
    first = decode_images(manifest, SPEC, tmp_path / "pixels.npy")
    made_of = json.loads(first.journal.read_text(encoding="utf-8").splitlines()[0])
    other = decode_images(manifest, PixelSpec(size=64), tmp_path / "pixels.npy")
    assert json.loads(other.journal.read_text(encoding="utf-8").splitlines()[0]) != made_of
    other.finish()
    assert np.load(tmp_path / "pixels.npy").shape == (10, 64, 64)


def test_a_file_that_lost_its_end_is_begun_anew(manifest: Manifest, tmp_path: Path) -> None:
    killed = decode_images(manifest, SPEC, tmp_path / "pixels.npy")
    killed.path.write_bytes(killed.path.read_bytes()[:-1])
    decode_images(manifest, SPEC, tmp_path / "pixels.npy").finish()
    assert np.load(tmp_path / "pixels.npy").shape == (10, 32, 32)


def test_more_bad_images_than_good_ones_end_the_run_in_one_line(manifest: Manifest, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"p{number}.png").write_bytes(b"no image")
    with pytest.raises(
        TooManyRejected, match=r"6 of 11 rows cannot be used, 6 of them because of not_an_image; row 1: "
    ):
        decode_images(manifest, SPEC, tmp_path / "pixels.npy")

"""The same picture under several patients: found whatever was done to the copy, and never in two splits."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.pipeline import near_duplicates
from medsd.pipeline.near_duplicates import NearDuplicates, describe, find_near_duplicates, keep_together, write_report
from medsd.settings import SplitSettings
from medsd.studies.manifest import Manifest, complete

NIH14 = finding_set("nih14")
DATA = Path(os.environ.get("MEDSD_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _pictures(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Soft pictures (N, 64, 64), no two alike."""
    rng = np.random.default_rng(seed)
    small = (rng.random((count, 12, 12)) * 255).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((64, 64), Image.Resampling.BICUBIC)) for each in small])


def _copies(picture: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """What becomes of a picture on its way through other programs."""
    image, packed = Image.fromarray(picture), BytesIO()
    image.save(packed, "JPEG", quality=60)
    smaller = image.resize((40, 40), Image.Resampling.BILINEAR).resize((64, 64), Image.Resampling.BICUBIC)
    darker = 255 * (picture / 255) ** 1.5
    return [picture, np.asarray(Image.open(packed)), np.asarray(smaller), darker.astype(np.uint8)]


def _manifest(patients: list[str], root: Path, **more: object) -> Manifest:
    names = [f"{patient}/{number}.png" for number, patient in enumerate(patients)]
    table = pd.DataFrame({"study": names, "patient": patients, "path": names, **more.pop("columns", {})})  # type: ignore[call-overload]
    return Manifest(complete(table, NIH14), NIH14, root, **more)  # type: ignore[arg-type]


def test_copies_are_found_under_other_patients_and_nothing_else_is() -> None:
    pictures = _pictures(40)
    pixels = np.concatenate([pictures, np.stack(_copies(pictures[7])), np.zeros((3, 64, 64), np.uint8), pictures[:1]])
    patients = np.array([f"p{number}" for number in range(47)] + ["p0"])  # the last is the first patient's own
    alike = find_near_duplicates(pixels, patients)
    rows = {7, 40, 41, 42, 43}
    assert {*zip(alike.first.tolist(), alike.second.tolist(), strict=True)} == {
        (one, other) for one in rows for other in rows if one < other
    }
    assert (alike.likeness >= 0.97).all() and not len(find_near_duplicates(pixels[:0], patients[:0]))


def test_where_medsd_deals_the_patients_of_copies_share_a_split_whatever_the_order(tmp_path: Path) -> None:
    pixels = np.concatenate([_pictures(60), _pictures(60)[[3, 3, 9]]])
    patients = [f"p{number:02d}" for number in range(63)]
    rows = {}
    for order in (np.arange(63), np.random.default_rng(1).permutation(63)):
        named = [patients[row] for row in order]
        manifest = _manifest(named, tmp_path, columns={"split": "train", "Mass": order % 3 == 0}, dealt=True)
        kept = keep_together(manifest, find_near_duplicates(pixels[order], manifest.patients), SplitSettings())
        split = dict(zip(kept.table["patient"], kept.table["split"], strict=True))
        assert split["p03"] == split["p60"] == split["p61"] and split["p09"] == split["p62"]
        assert set(split.values()) == {"train", "validation", "test"} and len(kept) == 63
        rows[order[0]] = split
    assert len({tuple(sorted(split.items())) for split in rows.values()}) == 1


def test_a_split_of_the_sources_own_is_kept_and_the_copies_outside_the_guarded_one_are_set_aside(
    tmp_path: Path,
) -> None:
    patients = ["a", "a", "b", "c", "d", "e"]
    split = ["train", "train", "test", "validation", "train", "validation"]
    manifest = _manifest(patients, tmp_path, columns={"split": split})
    alike = NearDuplicates(np.array([0, 2, 4]), np.array([2, 3, 5]), np.ones(3, np.float32))
    kept = keep_together(manifest, alike, SplitSettings())
    assert [None if pd.isna(one) else one for one in kept.table["split"]] == [
        None, None, "test", None, None, "validation",
    ]  # fmt: skip
    assert [(row, path, reason) for row, path, reason, _ in kept.rejected.entries] == [
        (1, "…/0.png", "near_duplicate"), (2, "…/1.png", "near_duplicate"), (4, "…/3.png", "near_duplicate"),
        (5, "…/4.png", "near_duplicate"),
    ]  # fmt: skip


def test_a_data_set_of_one_picture_is_refused_with_the_way_out(tmp_path: Path) -> None:
    manifest = _manifest([f"p{n}" for n in range(30)], tmp_path, columns={"split": "train"}, dealt=True)
    alike = find_near_duplicates(np.repeat(_pictures(1), 30, axis=0), manifest.patients)
    with pytest.raises(DataError, match=r"30 patients show only 1 that differ.*splits\.near_duplicates: false"):
        keep_together(manifest, alike, SplitSettings())


def test_more_pairs_than_can_be_kept_are_refused_and_too_many_images_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, patients = np.repeat(_pictures(1), 30, axis=0), np.array([f"p{number}" for number in range(30)])
    monkeypatch.setattr(near_duplicates, "_AT_A_TIME", 100)  # three rows at a time
    assert len(find_near_duplicates(pixels, patients)) == 30 * 29 / 2
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", 200)
    with pytest.raises(DataError, match=r"more than 200 pairs .*near_duplicates: false"):
        find_near_duplicates(pixels, patients)
    monkeypatch.setattr(near_duplicates, "MOST_IMAGES", 29)
    assert not len(find_near_duplicates(pixels, patients)) and "not looked for in more than 29 images" in caplog.text


def test_the_report_names_pairs_and_no_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = _manifest(["00012", "12b", "77"], tmp_path, columns={"split": ["train", "test", "test"]})
    alike = NearDuplicates(np.array([0, 0]), np.array([1, 2]), np.array([0.98, 0.995], np.float32))
    write_report(manifest, alike, tmp_path / "near_duplicates.csv")
    assert (tmp_path / "near_duplicates.csv").read_text().splitlines() == [
        "likeness,path,split,path_2,split_2", "0.995,…/0.png,train,…/2.png,test", "0.98,…/0.png,train,…/1.png,test",
    ]  # fmt: skip
    assert "3 images look the same as one of another patient; these 3 patients are kept in one split" in caplog.text


@pytest.mark.skipif(not (DATA / "nih_64").is_dir(), reason="no shared data: ../shared/data/nih_64")
def test_real_radiographs_of_different_patients_are_not_taken_for_one_and_their_copies_are() -> None:
    paths = {path.name: path for path in (DATA / "nih_64").rglob("*.png")}
    table = pd.read_csv(DATA / "nih_64" / "labels.csv", dtype=str)
    table = table[table["Image Index"].isin(paths)].iloc[:2000]
    pixels = np.stack(
        [np.asarray(Image.open(paths[name]).convert("L").resize((64, 64))) for name in table["Image Index"]]
    )
    assert not len(find_near_duplicates(pixels, table["Patient ID"].to_numpy(dtype=str)))
    described = describe(pixels[::20])
    for number in range(4):
        copies = describe(np.stack([_copies(picture)[number] for picture in pixels[::20]]))
        assert (np.einsum("ij,ij->i", described, copies) >= 0.97).mean() >= 0.99

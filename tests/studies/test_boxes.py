"""Boxes of ChestX-ray14: read by position, in shares of the image, refused where they cannot be."""

from pathlib import Path

import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.studies.boxes import read_boxes

FINDINGS = finding_set("nih14")
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h]"


def written(folder: Path, *rows: str, name: str = "BBox_List_2017.csv") -> Path:
    (folder / name).write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return folder


def test_boxes_are_shares_of_the_image_and_go_by_the_finding_set_s_names(tmp_path: Path) -> None:
    (box,) = read_boxes(written(tmp_path, "00000001_000.png,Infiltrate,256,512,128,256"), FINDINGS)
    assert (box.study, box.finding) == ("00000001_000", "Infiltration")
    assert (box.left, box.top, box.right, box.bottom) == (0.25, 0.5, 0.375, 0.75)


def test_nih_s_trailing_commas_and_findings_of_other_sets_do_no_harm(tmp_path: Path) -> None:
    folder = written(tmp_path, "a.png,Mass,1,2,3,4,,,", "b.png,Scoliosis,1,2,3,4,,,")
    assert [box.study for box in read_boxes(folder, FINDINGS)] == ["a"]


def test_boxes_of_the_parts_of_a_data_set_are_read(tmp_path: Path) -> None:
    (tmp_path / "selected").mkdir()
    written(tmp_path / "selected", "00000001_000.png,Mass,256,512,128,256")
    assert [box.finding for box in read_boxes(tmp_path, FINDINGS)] == ["Mass"]


def test_a_folder_without_a_table_has_no_boxes(tmp_path: Path) -> None:
    assert read_boxes(tmp_path, FINDINGS) == ()


@pytest.mark.parametrize("row", ["a.png,Mass,1000,0,100,10", "a.png,Mass,-1,0,10,10", "a.png,Mass,1,1,0,10"])
def test_a_box_outside_its_image_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match="line 3: the box lies outside"):
        read_boxes(written(tmp_path, "b.png,Mass,1,2,3,4", row), FINDINGS)


@pytest.mark.parametrize("row", ["a.png,Mass,left,0,100,10", "a.png"])
def test_what_is_no_table_of_boxes_is_refused_in_a_line(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match="cannot be read as NIH's table of boxes"):
        read_boxes(written(tmp_path, row), FINDINGS)


def test_the_real_table_is_read_whole(data_root: Path) -> None:
    boxes = read_boxes(data_root / "nih_cxr", FINDINGS)
    assert len(boxes) == 932 and len({box.finding for box in boxes}) == 8

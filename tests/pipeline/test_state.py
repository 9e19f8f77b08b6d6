"""What changes on disk makes the steps again that depend on it, and no others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsd.pipeline import images, state
from medsd.pipeline import run as running
from medsd.pipeline.run import run_steps
from medsd.settings import Settings
from medsd.studies.manifest import Manifest
from tests.studies.sources.test_mimic import _replica as mimic_replica

NAMES = [step.name for step in running.STEPS]
BOXES = "image,finding,x,y,w,h\n"


def _write(root: Path, *, label: str = "Effusion", more: str = "") -> None:
    """The table of forty images in NIH's form."""
    header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position,remark\n"
    rows = [
        f"{number:02d}.png,{label if number % 2 else 'No Finding'},{number},50,F,PA,{more}\n" for number in range(40)
    ]
    (root / "labels.csv").write_text(header + "".join(rows), encoding="utf-8")


def _image(root: Path, number: int, seed: int = 0) -> None:
    pixels = np.random.default_rng([seed, number]).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{number:02d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for number in range(40):
        _image(tmp_path / "data", number)
    _write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def train(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`medsd train` with every step but `prepare` a line in a list; what was done."""
    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")
    done: list[str] = []

    def noted(step: running.Step) -> running.Step:
        def work(run: running.Run) -> None:
            done.append(step.name)
            if step.name == running.PREPARE:
                step.work(run)

        return replace(step, work=work)

    monkeypatch.setattr(running, "STEPS", tuple(map(noted, running.STEPS)))

    def run(**data: object) -> list[str]:
        done.clear()
        settings = Settings(
            name="own",
            findings="nih14" if not data else "chexpert14",
            output=root / "runs",  # below the data, as some have it
            data=data or {"source": "nih14", "root": root},
            pixels={"size": 32},
        )
        run_steps(settings)
        return list(done)

    return run


def _touch(path: Path) -> None:
    before = path.stat().st_mtime_ns
    os.utime(path, ns=(before + 10**9, before + 10**9))


def _tear(root: Path) -> None:
    """A cell of the table changes, and neither its size nor its time."""
    path, before = root / "labels.csv", (root / "labels.csv").stat()
    path.write_bytes(path.read_bytes().replace(b"Effusion", b"Fibrosis", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda root: None, []),
    "a label": (lambda root: _write(root, label="Mass"), NAMES),
    "a label in a table of the same size and time": (_tear, NAMES),
    "a column that no study has": (lambda root: _write(root, more="seen"), ["prepare"]),
    "the time of the table": (lambda root: _touch(root / "labels.csv"), []),
    "a row": (lambda root: (root / "images" / "07.png").unlink(), NAMES),
    "an image": (lambda root: _image(root, 7, seed=1), NAMES),
    "the time of an image": (lambda root: _touch(root / "images" / "07.png"), ["prepare"]),
    "a new list of test images": (lambda root: (root / "test_list.txt").write_text("03.png\n04.png\n"), NAMES),
    "a file of another purpose": (lambda root: (root / "notes.txt").write_text("ours"), ["prepare"]),
    "a table of boxes": (
        lambda root: (root / "boxes.csv").write_text(BOXES + "03.png,Effusion,1,1,9,9\n"),
        NAMES[NAMES.index("calibrate") :],
    ),
    "a hidden file": (lambda root: (root / ".DS_Store").write_text("x"), []),
    "the output of another run": (lambda root: (root / "runs" / "other.csv").write_text("x"), []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_on_disk_is_done_again_and_nothing_else(
    root: Path, train: Callable[..., list[str]], change: str
) -> None:
    assert train() == NAMES and train() == []
    alter, expected = CHANGES[change]
    alter(root)
    assert train() == expected
    assert train() == []


def test_a_changed_label_leaves_the_decoded_images_as_they_are(
    root: Path, train: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    pixels, asked = (root / "runs" / "own" / "pixels.npy").read_bytes(), []
    decode_all = images.decode_all
    monkeypatch.setattr(images, "decode_all", lambda paths, *a, **k: decode_all(map(asked.append, paths), *a, **k))
    _write(root, label="Mass")
    assert train() == NAMES and not asked
    manifest = Manifest.read(root / "runs" / "own" / "studies.parquet")
    assert manifest.findings.decode(manifest.labels[1]) == ("Mass",)
    assert (root / "runs" / "own" / "pixels.npy").read_bytes() == pixels


def test_a_note_that_changes_in_its_folder_is_read_again(train: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "mimic"
    mimic_replica(folder)
    for number in range(12):
        report = folder / f"files/p10/p1000{number:04d}/s5000{number:04d}.txt"
        report.write_text("INDICATION: Cough.\n")
        image = next(report.with_suffix("").glob("*-pa.jpg"))
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
    labels = folder / "mimic-cxr-2.0.0-chexpert.csv"
    rows = [f"1000{n:04d},5000{n:04d},{','.join([str(float(n % 8 == 0))] * 14)}" for n in range(12)]
    header = "subject_id,study_id,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    header += "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    labels.with_suffix(".csv.gz").unlink()
    labels.write_text("\n".join([header, *rows]))
    mimic = {"source": "mimic", "root": folder}
    assert train(**mimic) == NAMES and train(**mimic) == []
    report.write_text("INDICATION: Fall.\n")
    assert train(**mimic) == NAMES and train(**mimic) == []
    _touch(report)
    assert train(**mimic) == ["prepare"]


def test_a_run_that_is_asked_to_prepare_by_name_decodes_again_and_keeps_what_came_of_it(
    root: Path, train: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    decode_all, decoded = images.decode_all, []
    monkeypatch.setattr(
        images, "decode_all", lambda paths, *a, **k: decode_all((decoded.append(p) or p for p in paths), *a, **k)
    )
    settings = Settings(
        name="own", findings="nih14", output=root / "runs", data={"source": "nih14", "root": root}, pixels={"size": 32}
    )
    run_steps(settings, "prepare", again=True)
    assert len(decoded) == 40 and train() == []


def test_links_are_followed_once_and_weights_count_by_their_content(root: Path, tmp_path: Path) -> None:
    (root / "images" / "above").symlink_to(root, target_is_directory=True)  # in a circle
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (root / "images_001").symlink_to(elsewhere, target_is_directory=True)
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"one")

    def told() -> tuple[str, str]:
        network = {"image": {"backbone": "densenet-small", "weights": str(weights)}}
        settings = Settings(
            name="own", findings="nih14", output=root / "runs", data={"source": "nih14", "root": root}, network=network
        )
        return state.sources(settings), state.weights(settings)

    first = told()
    (elsewhere / "new.png").write_bytes(b"picture")
    assert told()[0] != first[0] and told()[1] == first[1]
    _touch(weights)
    assert told()[1] == first[1]
    weights.write_bytes(b"two")
    assert told()[1] != first[1]

"""`medsd verify`: an installation gives what a bundle gave when it was made, or it is said what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.cli import app
from medsd.errors import BundleError, MedsdError
from medsd.inference.providers import CPU
from medsd.preprocessing import pixels
from medsd.scoring.verify import verify, write_reference
from tests.bundles import tiny_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def referenced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tiny_bundle(tmp_path_factory.mktemp("verify") / "bundle", fused=True)).folder


@pytest.fixture
def folder(referenced: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(referenced, tmp_path / "bundle"))


def _flip_a_weight(folder: Path) -> None:
    content = bytearray((folder / layout.MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / layout.MODEL).write_bytes(content)


def _resize_by(monkeypatch: pytest.MonkeyPatch, resampling: Image.Resampling) -> None:
    def resize(image: npt.NDArray[np.float32], size: tuple[int, int], box: object = None) -> npt.NDArray[np.float32]:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, resampling, box=box), np.float32)

    monkeypatch.setattr(pixels, "_resize", resize)


@pytest.mark.parametrize("name", ["nih14", "phantom"])
def test_a_bundle_that_ships_agrees_on_every_precision_once_it_has_a_reference(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "models" / name, tmp_path / name))
    added = CliRunner().invoke(app, ["export", "--bundle", str(folder), "--reference"])
    assert added.exit_code == 0, added.output
    precisions = ["float32", *Bundle.open(folder).description.variants]
    result = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    whats = {each["what"] for each in json.loads(result.stdout)["agreements"]}
    assert {"pixels", *(f"{CPU} {precision}" for precision in precisions)} <= whats
    assert CliRunner().invoke(app, ["card", str(folder), "--check"]).exit_code == 0


def test_what_is_compared_and_within_which_tolerance_is_printed(folder: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(folder), "--provider", "cpu"])
    assert result.exit_code == 0, result.output
    assert "probabilities differ by" in result.stdout and "(at most 0.001)" in result.stdout
    assert result.stdout.endswith("gives what the bundle gave when it was made.\n")


def test_a_changed_byte_of_a_weight_is_found(folder: Path) -> None:
    _flip_a_weight(folder)
    with pytest.raises(BundleError, match=r"model\.onnx was changed after export"):
        verify(folder)


def test_a_changed_byte_is_found_though_the_hashes_were_written_again(folder: Path) -> None:
    bundle = Bundle.open(folder)
    _flip_a_weight(folder)
    layout.write_description(folder, bundle.description)
    found = verify(folder, provider="cpu")
    assert not found.agrees and "not the one that the reference was made with" in found.text()


@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.HAMMING, Image.Resampling.NEAREST])
def test_another_resize_filter_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, resampling: Image.Resampling
) -> None:
    _resize_by(monkeypatch, resampling)
    result = CliRunner().invoke(app, ["verify", str(folder), "--provider", "cpu"])
    assert result.exit_code == 1
    assert "pixels: DIFFERS" in result.stdout and "resizing is another" in result.stdout


def test_other_phantoms_are_told_from_another_preprocessing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsd.scoring.verify.SEED", 2)
    found = verify(folder, provider="cpu")
    assert not found.agrees and not found.same_phantoms and "drawn otherwise" in found.text()


def test_rows_that_are_others_are_named_by_their_column(folder: Path) -> None:
    path = folder / layout.REFERENCE
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["rows"]["float32"][0]["status"] = "refused"
    tree["rows"]["float32"][2]["probability_Mass"] += 0.01
    path.write_text(json.dumps(tree), encoding="utf-8")
    layout.write_description(folder, Bundle.open(folder, verify=False).description)
    text = verify(folder, provider="cpu").text()
    assert "input 0: status" in text and "probabilities differ by 0.01 (at most 0.001)" in text


def test_a_bundle_without_a_reference_says_how_to_add_one(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"medsd export --bundle .* --reference"):
        verify(bundle.folder)


def test_a_reference_that_does_not_fit_its_bundle_is_one_line(folder: Path) -> None:
    (folder / layout.REFERENCE).write_text('{"inputs": [], "graphs": {}, "rows": {}}', encoding="utf-8")
    layout.write_description(folder, Bundle.open(folder, verify=False).description)
    with pytest.raises(BundleError, match=r"reference\.json: cannot be read") as caught:
        verify(folder)
    assert "\n" not in str(caught.value)


def test_a_provider_that_does_not_work_here_is_an_error_when_asked_for(folder: Path) -> None:
    with pytest.raises(MedsdError, match="provider 'openvino' does not work"):
        verify(folder, provider="openvino")

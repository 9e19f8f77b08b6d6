"""The gate's section in training: what prepare leaves out, and what a run makes again when it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medsd.dicom.gate import GatePolicy
from medsd.findings import finding_set
from medsd.pipeline.images import decode_images
from medsd.pipeline.run import STEPS, _fingerprint
from medsd.settings import PixelSpec, Settings, load_settings
from medsd.studies.manifest import Manifest, complete
from tests.dicom.drawings import lateral_image

CONFIG = Path(__file__).parents[2] / "configs" / "nih14.yaml"


def fingerprints(settings: Settings) -> list[str]:
    """Of each step, as if the steps before it had stayed as they were."""
    return [_fingerprint(step, settings, "before") for step in STEPS]


def test_only_preparing_depends_on_the_gate() -> None:
    usual, other = (fingerprints(load_settings(CONFIG, given)) for given in ((), ["gate.lateral_look=refuse"]))
    changed = [step.name for step, one, two in zip(STEPS, usual, other, strict=True) if one != two]
    assert changed == ["prepare"]


@pytest.mark.parametrize(("action", "refused"), [("warn", []), ("refuse", [(1, "view")])])
def test_prepare_leaves_out_what_the_gate_refuses(tmp_path: Path, action: str, refused: list[tuple[int, str]]) -> None:
    films = [np.linspace(0, 1, 96 * 96).reshape(96, 96), lateral_image(1000), np.eye(96)]
    for number, film in enumerate(films):
        Image.fromarray((film * 255).astype(np.uint8)).save(tmp_path / f"p{number}.png")
    names = [f"p{number}.png" for number in range(3)]
    findings = finding_set("nih14")
    table = complete(pd.DataFrame({"study": names, "patient": names, "path": names}), findings)
    manifest = Manifest(table, findings, tmp_path, source_rows=np.arange(3) + 1)
    policy = GatePolicy.model_validate({"lateral_look": action})
    found = decode_images(manifest, PixelSpec(size=32), tmp_path / "pixels.npy", policy).refused
    assert [(row, reason) for row, reason, _ in found] == refused

"""A bundle in MONAI's bundle form: metadata, inference configuration, weights and docs, for programs that speak that.

`write_monai_bundle` writes one. The other names are what its configuration calls when MONAI runs it: `load_network`,
`image_list` and `ReadImage`. Weights are safetensors, read by `load_network`: MONAI's own loader takes pickled files,
which medsd neither writes nor reads. medsd never runs a configuration of MONAI's form itself, as one can run code.

MONAI Bundle Specification: https://docs.monai.io/en/stable/mb_specification.html
"""

import json
import logging
import shutil
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.calibration.types import Calibration
from medsd.errors import BundleError
from medsd.export.onnx import ServingModel
from medsd.export.triton import TEMPLATES
from medsd.files import write_json
from medsd.findings import Finding, FindingSet
from medsd.networks.fusion import StudyModel
from medsd.preprocessing.image import read_image
from medsd.preprocessing.pixels import to_batch
from medsd.scoring.inputs import expand_inputs
from medsd.settings import NetworkSettings, PixelSpec
from medsd.strict import read_json

log = logging.getLogger(__name__)

WEIGHTS, NETWORK, METADATA, INFERENCE = (
    "models/model.safetensors",
    "configs/network.json",
    "configs/metadata.json",
    "configs/inference.json",
)
_CALIBRATION: TypeAdapter[dict[str, Calibration]] = TypeAdapter(dict[str, Calibration])


def write_monai_bundle(bundle: Bundle, folder: Path) -> Path:
    """Write a bundle that reads images in MONAI's form into `folder`, which must not be there or be empty.

    Raises BundleError: the bundle reads notes alone, lacks its weights or its configuration, or `folder` is not empty.
    """
    description, weights = bundle.description, bundle.folder / "weights" / "model.safetensors"
    if not description.image:
        raise BundleError(f"{bundle.folder}: reads notes alone; MONAI's form is written of models that read images")
    if not weights.is_file() or "network" not in description.provenance.config:
        raise BundleError(f"{bundle.folder}: weights, or their configuration, are not in this bundle; export it again")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder}: is there and not empty; give another folder")
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, folder / WEIGHTS)
    shutil.copyfile(bundle.model_path, folder / "models" / layout.MODEL)
    if description.note is not None:
        shutil.copyfile(bundle.tokenizer_path, folder / "models" / layout.TOKENIZER)
    write_json(folder / NETWORK, _network_facts(bundle))
    write_json(folder / METADATA, _metadata(bundle))
    (folder / INFERENCE).write_text(TEMPLATES.get_template("monai_inference.json").render(), encoding="utf-8")
    page = TEMPLATES.get_template("monai_readme.md.jinja").render(bundle=bundle)
    (folder / "docs" / "README.md").write_text(page, encoding="utf-8")
    licence = f"Software: Apache-2.0.\nData: {description.provenance.licence or 'not stated'}\n"
    for name in ("LICENSE", "docs/license.txt", "docs/data_license.txt"):
        (folder / name).write_text(licence, encoding="utf-8")
    return folder


class ImageProbabilities(nn.Module):
    """The calibrated model as MONAI calls it: pixels in, probabilities out; of a fused model, without a note."""

    def __init__(self, serving: ServingModel) -> None:
        super().__init__()
        self.serving = serving

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, S, S) in 0…1 → (B, F)."""
        # MONAI's tensors carry metadata that is not needed here.
        probabilities: Tensor = self.serving(torch.as_tensor(pixels).as_subclass(Tensor))[0]
        return probabilities


def load_network(bundle_root: str) -> ImageProbabilities:
    """The network of a folder that `write_monai_bundle` wrote, in evaluation mode; raises BundleError."""
    root = Path(bundle_root)
    facts = _read_facts(root)
    settings = NetworkSettings.model_validate_json(json.dumps(facts["network"]))
    tokenizer = None if settings.note is None else Tokenizer.from_file(str(root / "models" / layout.TOKENIZER))
    findings = FindingSet("bundle", tuple(Finding(name, name) for name in facts["findings"]))
    model = StudyModel(settings, len(findings), int(facts["pixels"]["size"]), tokenizer)
    try:
        missing, unexpected = model.load_state_dict(load_file(root / WEIGHTS), strict=False)
    except RuntimeError:  # tensors of other shapes
        missing, unexpected = [], ["shapes"]
    if unexpected or any(not name.startswith("projection.") for name in missing):  # that head is of the training alone
        raise BundleError(f"{root / WEIGHTS}: not the weights of {NETWORK}; write the bundle again")
    return ImageProbabilities(ServingModel(model, findings, _CALIBRATION.validate_python(facts["calibration"]))).eval()


def image_list(dataset_dir: str) -> list[dict[str, str]]:
    """The images below a folder, as MONAI's data sets take them."""
    return [{"image": str(path)} for path in expand_inputs([Path(dataset_dir)])]


class ReadImage:
    """A transform of MONAI: ``{"image": path}`` becomes ``{"image": (1, S, S) in 0…1, "filename_or_obj": path}``.

    Images go through medsd's gate and preprocessing. One that must not be scored becomes NaN, and so do its
    probabilities; the reason is logged.
    """

    def __init__(self, bundle_root: str) -> None:
        self.spec = PixelSpec.model_validate(_read_facts(Path(bundle_root))["pixels"])

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(data["image"])
        image = read_image(path, self.spec)
        if image.pixels is None:
            log.warning("%s", image.message)
            pixels = np.full((1, self.spec.size, self.spec.size), np.nan, np.float32)
        else:
            pixels = to_batch([image.pixels])[0]
        return {"image": torch.from_numpy(pixels), "filename_or_obj": str(path)}


def _read_facts(root: Path) -> dict[str, Any]:
    path = root / NETWORK
    try:
        facts: dict[str, Any] = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BundleError(f"{path}: missing or damaged; give the folder of a bundle as --bundle_root") from None
    return facts


def _network_facts(bundle: Bundle) -> dict[str, Any]:
    """What `load_network` and `ReadImage` need to know."""
    description = bundle.description
    network = json.loads(json.dumps(description.provenance.config["network"]))
    network["image"]["weights"] = "none"  # they come from the bundle
    return {
        "medsd_bundle": bundle.label,
        "model_sha256": bundle.model_sha256,
        "network": network,
        "pixels": description.pixels.model_dump(mode="json"),
        "findings": list(bundle.findings),
        "calibration": {name: each.model_dump(mode="json") for name, each in description.calibration.items()},
    }


def _metadata(bundle: Bundle) -> dict[str, Any]:
    """What is the same of every bundle, from the template, and what this one is."""
    d = bundle.description
    metadata: dict[str, Any] = json.loads(TEMPLATES.get_template("monai_metadata.json").render())
    network = metadata["network_data_format"]
    network["inputs"]["image"]["spatial_shape"] = [d.pixels.size, d.pixels.size]
    channels = {str(number): name for number, name in enumerate(bundle.findings)}
    network["outputs"]["pred"] |= {"num_channels": len(channels), "channel_def": channels}
    packages = ("medsd", "safetensors", "pydicom", "pydantic", "tokenizers")
    return metadata | {
        "version": d.version,
        "changelog": {d.version: "written by medsd export --monai-bundle"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch").split("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in packages},
        "optional_packages_version": {"onnxruntime": _version("onnxruntime") or _version("onnxruntime-gpu")},
        "name": d.name,
        "description": d.description.strip() or f"{len(channels)} findings on frontal chest radiographs",
        "data_source": d.provenance.citation or d.provenance.data,
    }


def _version(name: str) -> str:
    return next((found.version for found in distributions(name=name)), "")

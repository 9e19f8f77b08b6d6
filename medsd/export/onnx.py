"""From a trained model to `model.onnx`: one graph with calibrated probabilities, logits, embedding and evidence maps.

The graph carries its own description in the ONNX metadata, so that it can be read without the bundle around it.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from medsd.bundle import layout
from medsd.calibration.types import Calibration, hinge_arrays
from medsd.errors import BundleError, first_line
from medsd.findings import FindingSet
from medsd.networks.fusion import EvidenceHead, StudyInputs, StudyModel, logit_parts

OPSET = 20
LARGEST_BATCH = 1024
_OWN = "medsd_"  # before the outputs' names until the graph is made


class ServingModel(nn.Module):
    """What is exported: the model with its calibration, from the graph's inputs to its outputs (`layout`).

    The probability of a finding without a calibration is NaN. Without a `head` of the evidence maps, the class
    activation map is drawn as it is.
    """

    slope: Tensor
    intercept: Tensor
    knots: Tensor | None
    bends: Tensor | None
    trained: Tensor | None

    def __init__(
        self,
        model: StudyModel,
        findings: FindingSet,
        calibration: Mapping[str, Calibration],
        head: EvidenceHead | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        arrays = hinge_arrays([calibration.get(name) for name in findings])
        for name in ("slope", "intercept", "knots", "bends", "trained"):
            self.register_buffer(name, torch.from_numpy(arrays[name]) if name in arrays else None)

    def forward(
        self,
        pixels: Tensor | None = None,
        has_image: Tensor | None = None,
        note_ids: Tensor | None = None,
        note_mask: Tensor | None = None,
        has_note: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Probabilities (B, F), logits (B, F), embedding (B, D) and, of a model of images, evidence (B, F, h, w), each
        place's part of the logit, and regions (B, D, h, w).
        """
        outputs = self.model(StudyInputs(pixels, has_image, note_ids, note_mask, has_note))
        log_odds = self.slope * outputs.logits + self.intercept
        if self.knots is not None and self.bends is not None:
            log_odds = log_odds + (torch.relu(outputs.logits[:, :, None] - self.knots) * self.bends).sum(2)
        probabilities = torch.sigmoid(log_odds)
        # A finding that was not trained has no probability. NaN comes after the sigmoid, whose kernels may lose one.
        # It is a factor, not a summand, because quantisers look for the range of sums.
        if self.trained is not None:
            probabilities = probabilities * self.trained
        said = (probabilities, outputs.logits, outputs.embedding)
        if outputs.evidence is None or outputs.regions is None:
            return said
        if self.head is None:
            evidence = logit_parts(outputs.evidence)
        else:
            evidence = self.head(outputs, _image_share(pixels, has_image, has_note))
        length = outputs.features.norm(dim=1).clamp_min(1e-12)  # as F.normalize divides
        return (*said, evidence, outputs.regions / length[:, None, None, None])


def _image_share(pixels: Tensor | None, has_image: Tensor | None, has_note: Tensor | None) -> Tensor:
    """(B or 1, 1, 1, 1): the image's share of the features, as `medsd.networks.fusion` weighs what a study has."""
    if has_image is None or has_note is None:
        assert pixels is not None
        return pixels.new_ones(1, 1, 1, 1)
    return (has_image / (has_image + has_note).clamp_min(1))[:, None, None, None]


def input_names(model: StudyModel) -> tuple[str, ...]:
    """The graph's inputs for this model."""
    if model.image is None:
        return layout.INPUTS_NOTE
    return layout.INPUTS_IMAGE if model.note is None else layout.INPUTS_FUSED


def output_names(model: StudyModel) -> tuple[str, ...]:
    """The graph's outputs for this model."""
    return layout.OUTPUTS_NOTE if model.image is None else layout.OUTPUTS


def export_onnx(
    serving: ServingModel, path: Path, *, size: int, max_tokens: int, metadata: Mapping[str, object]
) -> None:
    """Write the graph of `serving`, which is on the CPU and is put into evaluation mode here.

    `size` is the side of the pixels, `max_tokens` the length of a note; `metadata` goes into the model as JSON, key by
    key. Raises BundleError where the exporter fails.
    """
    serving.eval()
    names = input_names(serving.model)
    given, tokens = torch.ones(2), torch.ones(2, max_tokens, dtype=torch.int64)
    example = {"pixels": torch.rand(2, 1, size, size), "has_image": given, "has_note": given.clone()}
    example |= {"note_ids": tokens, "note_mask": tokens.clone()}
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside the exporter
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                serving,
                (),
                str(path),
                kwargs={name: example[name] for name in names},
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=[_OWN + name for name in output_names(serving.model)],
                dynamic_shapes={name: {0: batch} for name in names},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds
        raise BundleError(f"{path}: PyTorch could not export the model: {first_line(error)}") from error
    graph = onnx.load(path)
    _name_outputs(graph)
    # The exporter leaves stack traces at each node, which name folders of the machine.
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.initializer, graph.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(graph, {f"medsd.{key}": json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _name_outputs(model: onnx.ModelProto) -> None:
    """Give the outputs their names. The exporter calls values inside the graph "embedding", too: those make way."""
    names = {name: f"{name}_inner" for name in layout.OUTPUTS} | {_OWN + name: name for name in layout.OUTPUTS}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)

"""Small real bundles for tests: an ONNX graph with random weights, written by hand, in seconds and without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from medsd.bundle import layout
from medsd.calibration.types import OperatingPoint, PlattCalibration
from medsd.findings import finding_set
from medsd.settings import PixelSpec

SIZE, GRID, WIDTH, TOKENS = 64, 8, 16, 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "short", "of", "breath", "fever", "cough", "known", "heart", "failure")


def tiny_bundle(folder: Path, *, findings: str = "nih14", fused: bool = False, seed: int = 0) -> layout.Bundle:
    """Write a bundle that answers differently to different films (and notes); open it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = finding_set(findings)
    onnx.save(_graph(len(vocabulary), fused, seed), folder / layout.MODEL)
    if fused:
        _write_tokenizer(folder / layout.TOKENIZER)
    points = {
        name: OperatingPoint(
            threshold=None if name == "Hernia" else 0.5,
            rule="youden",
            sensitivity=0.7,
            specificity=0.8,
            positives=20,
            negatives=80,
        )
        for name in vocabulary
    }
    description = layout.Description(
        schema_version=layout.SCHEMA_VERSION,
        name="tiny-fused" if fused else "tiny",
        version="1",
        created="2026-01-01T00:00:00Z",
        synthetic=True,
        finding_set=findings,
        findings=layout.finding_entries(vocabulary),
        note=layout.NoteInput(max_tokens=TOKENS) if fused else None,
        pixels=PixelSpec(size=SIZE),
        embedding_size=WIDTH,
        evidence_grid=(GRID, GRID),
        calibration={name: PlattCalibration(slope=1.0, intercept=0.0) for name in vocabulary},
        operating_points=points,
        provenance=layout.Provenance(
            data="random weights", data_hash="0", split_hash="0", studies={"train": 0}, patients={"train": 0}, config={}
        ),
    )
    layout.write_description(folder, description)
    return layout.Bundle.open(folder)


def _graph(count: int, fused: bool, seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    stride = SIZE // GRID
    weights = {
        "patch": rng.normal(0, 0.2, (WIDTH, 1, stride, stride)),
        "head": rng.normal(0, 1.5, (count, WIDTH, 1, 1)),
        "words": rng.normal(0, 0.5, (len(WORDS), WIDTH)),
    }
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "one_axis"))
    initializers.append(numpy_helper.from_array(np.array([2, 3], np.int64), "spatial"))
    initializers.append(numpy_helper.from_array(np.float32(0.5), "half"))
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64
    inputs = [helper.make_tensor_value_info("pixels", f32, ["batch", 1, SIZE, SIZE])]
    nodes = [
        helper.make_node("Sub", ["pixels", "half"], ["centred"]),
        helper.make_node("Conv", ["centred", "patch"], ["map_image"], strides=[stride, stride]),
    ]
    if fused:
        inputs += [
            helper.make_tensor_value_info("has_image", f32, ["batch"]),
            helper.make_tensor_value_info("note_ids", i64, ["batch", TOKENS]),
            helper.make_tensor_value_info("note_mask", i64, ["batch", TOKENS]),
            helper.make_tensor_value_info("has_note", f32, ["batch"]),
        ]
        initializers.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "after_batch"))
        nodes += [
            helper.make_node("Unsqueeze", ["has_image", "after_batch"], ["has_image4"]),
            helper.make_node("Mul", ["map_image", "has_image4"], ["map"]),
            helper.make_node("Gather", ["words", "note_ids"], ["word_vectors"]),
            helper.make_node("Cast", ["note_mask"], ["mask_float"], to=f32),
            helper.make_node("Unsqueeze", ["mask_float", "last"], ["mask3"]),
            helper.make_node("Mul", ["word_vectors", "mask3"], ["kept_vectors"]),
            helper.make_node("ReduceSum", ["kept_vectors", "one_axis"], ["note_sum"], keepdims=0),
            helper.make_node("Unsqueeze", ["has_note", "last"], ["has_note2"]),
            helper.make_node("Mul", ["note_sum", "has_note2"], ["note_vector"]),
            helper.make_node("ReduceMean", ["map", "spatial"], ["image_vector"], keepdims=0),
            helper.make_node("Add", ["image_vector", "note_vector"], ["vector"]),
        ]
    else:
        nodes += [
            helper.make_node("Identity", ["map_image"], ["map"]),
            helper.make_node("ReduceMean", ["map", "spatial"], ["vector"], keepdims=0),
        ]
    nodes += [
        helper.make_node("Conv", ["map", "head"], ["evidence"]),
        helper.make_node("Unsqueeze", ["vector", "spatial"], ["vector4"]),
        helper.make_node("Conv", ["vector4", "head"], ["logits4"]),
        helper.make_node("Squeeze", ["logits4", "spatial"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("LpNormalization", ["vector"], ["embedding"], axis=1, p=2),
        helper.make_node("ReduceL2", ["vector", "one_axis"], ["length"], keepdims=1),
        helper.make_node("Unsqueeze", ["length", "spatial"], ["length4"]),
        helper.make_node("Div", ["map", "length4"], ["regions"]),
    ]
    outputs = [
        helper.make_tensor_value_info("probabilities", f32, ["batch", count]),
        helper.make_tensor_value_info("logits", f32, ["batch", count]),
        helper.make_tensor_value_info("embedding", f32, ["batch", WIDTH]),
        helper.make_tensor_value_info("evidence", f32, ["batch", count, GRID, GRID]),
        helper.make_tensor_value_info("regions", f32, ["batch", WIDTH, GRID, GRID]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))

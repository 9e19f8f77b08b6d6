"""A bundle as a model repository of Triton Inference Server: graph, configuration, labels, and a client to start from.

Triton serves the graph alone. What stands around it in medsd (the gate, the preprocessing, the check for films unlike
the training ones) stays with the client, which is why the example uses medsd's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError

CONFIG, LABELS, CLIENT, VERSION = "config.pbtxt", "labels.txt", "client.py", "1"
MAX_BATCH = 32
PREFERRED = (8, 16, 32)
QUEUE_DELAY_US = 2000  # how long a request waits for others: a fraction of what a batch takes
WARM_UP = (1, 8)  # batch sizes computed before the model is called ready
_INTEGERS = ("note_ids", "note_mask")


def write_repository(bundle: Bundle, folder: Path) -> Path:
    """Write the bundle into a model repository.

    With a float16 graph in the bundle there are two models: NAME on the CPU by float32, NAME_gpu on GPUs by float16;
    without one, NAME alone, which Triton puts on every GPU, or on the CPU where there is none.

    Args:
        bundle: an opened, verified bundle.
        folder: the repository; made where it is missing. Models of other names in it stay.

    Returns:
        the folder of the model that clients ask first.

    Raises:
        BundleError: a model of that name is in the repository.
    """
    name = bundle.description.name
    halves = "float16" in bundle.description.variants
    models: list[tuple[str, layout.Precision, str]] = [(name, "float32", "KIND_CPU" if halves else "KIND_AUTO")]
    if halves:
        models.append((f"{name}_gpu", "float16", "KIND_GPU"))
    for model, _, _ in models:
        if (folder / model).exists():
            raise BundleError(f"{folder / model}: there is a model of this name; remove it, or give another folder")
    for model, precision, kind in models:
        _write_model(bundle, folder, model, precision, kind)
    client = folder / CLIENT
    client.write_text(_client(name), encoding="utf-8")
    return folder / name


def _write_model(bundle: Bundle, folder: Path, model: str, precision: layout.Precision, kind: str) -> None:
    """One model, beside its place and then moved there: a server may be looking."""
    part = folder / f".{model}.part"
    shutil.rmtree(part, ignore_errors=True)
    (part / VERSION).mkdir(parents=True)
    shutil.copyfile(bundle.graph_path(precision), part / VERSION / layout.MODEL)
    (part / CONFIG).write_text(model_config(bundle, model, kind), encoding="utf-8")
    (part / LABELS).write_text("".join(f"{name}\n" for name in bundle.findings), encoding="utf-8")
    part.replace(folder / model)


def model_config(bundle: Bundle, name: str, kind: str) -> str:
    """The text of config.pbtxt (`inference.ModelConfig` of Triton's protocol).

    Args:
        bundle: whose inputs and outputs are described.
        name: of the model, as its folder is called.
        kind: of its instances: KIND_AUTO, KIND_CPU or KIND_GPU.
    """
    description = bundle.description
    outputs = _block("output", (_tensor(each, _output_shape(bundle, each), each) for each in description.outputs))
    warm_up = _block("model_warmup", (_warm_up(bundle, size) for size in WARM_UP))
    preferred = ", ".join(map(str, PREFERRED))
    facts = {"medsd.model": bundle.label, "medsd.model_sha256": bundle.model_sha256}
    parameters = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in facts.items()
    )
    return (
        f'name: "{name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {MAX_BATCH}\n"
        + _block("input", (_tensor(each, _input_shape(bundle, each)) for each in description.inputs))
        + outputs
        + f"dynamic_batching {{\n  preferred_batch_size: [ {preferred} ]\n"
        f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}\n"
        + f"instance_group [ {{ count: 1 kind: {kind} }} ]\n"
        + warm_up
        + parameters
    )


def _block(key: str, entries: Iterable[str]) -> str:
    return f"{key} [\n" + ",\n".join(f"  {{ {entry} }}" for entry in entries) + "\n]\n"


def _tensor(name: str, shape: Sequence[int], output: str = "") -> str:
    # A shape of no dimension is one of 1 to Triton, and reshaped to what the graph takes.
    dims = ", ".join(map(str, shape or (1,)))
    reshape = "" if shape else " reshape { shape: [ ] }"
    labels = f' label_filename: "{LABELS}"' if output in ("probabilities", "logits") else ""
    return f'name: "{name}" data_type: {_kind(name)} dims: [ {dims} ]{reshape}{labels}'


def _kind(name: str) -> str:
    return "TYPE_INT64" if name in _INTEGERS else "TYPE_FP32"


def _warm_up(bundle: Bundle, size: int) -> str:
    """A request of zeros; what it says is thrown away."""
    inputs = []
    for name in bundle.description.inputs:
        dims = ", ".join(map(str, _input_shape(bundle, name) or (1,)))
        inputs.append(
            f'inputs {{ key: "{name}" value {{ data_type: {_kind(name)} dims: [ {dims} ] zero_data: true }} }}'
        )
    return f'name: "batch of {size}" batch_size: {size} ' + " ".join(inputs)


def _input_shape(bundle: Bundle, name: str) -> tuple[int, ...]:
    """Without the batch."""
    side, note = bundle.description.pixels.size, bundle.description.note
    if name == "pixels":
        return (1, side, side)
    return (note.max_tokens,) if name in _INTEGERS and note is not None else ()


def _output_shape(bundle: Bundle, name: str) -> tuple[int, ...]:
    description = bundle.description
    count = len(description.findings)
    if name == "evidence" and description.evidence_grid is not None:
        return (count, *description.evidence_grid)
    return (description.embedding_size,) if name == "embedding" else (count,)


def _client(name: str) -> str:
    """The example; it reads films as the bundle does, so that Triton says what `medsd score` says."""
    return _CLIENT.replace("MODEL_NAME", name)


_CLIENT = '''"""Ask Triton about films: python client.py BUNDLE FILM… [--url localhost:8001] [--model MODEL_NAME]

Needs medsd (the gate, the preprocessing and the tokens of the bundle) and `pip install "tritonclient[grpc]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from medsd import Bundle
from medsd.preprocessing.film import read_film
from medsd.preprocessing.notes import NoteTokenizer
from medsd.preprocessing.pixels import to_batch


def feeds(bundle: Bundle, film: np.ndarray, note: str = "") -> dict[str, np.ndarray]:
    """The graph's inputs for one film of the model's pixels (S, S), uint8."""
    given = {"pixels": to_batch([film])}
    if bundle.description.note is not None:
        notes = NoteTokenizer(bundle.tokenizer_path, bundle.description.note)([note])
        given |= {"has_image": np.ones((1, 1), np.float32), "has_note": notes.given.reshape(1, 1)}
        given |= {"note_ids": notes.ids, "note_mask": notes.mask}
    return {name: given[name] for name in bundle.description.inputs}


def ask(client: triton.InferenceServerClient, model: str, given: dict[str, np.ndarray]) -> np.ndarray:
    """Calibrated probabilities (F,); NaN for a finding that the model was not trained for."""
    inputs = []
    for name, value in given.items():
        tensor = triton.InferInput(name, list(value.shape), "INT64" if value.dtype == np.int64 else "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(value))
        inputs.append(tensor)
    answer = client.infer(model, inputs, outputs=[triton.InferRequestedOutput("probabilities")])
    return answer.as_numpy("probabilities")[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("films", type=Path, nargs="+")
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--model", default="MODEL_NAME")
    parser.add_argument("--note", default="")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    client = triton.InferenceServerClient(arguments.url)
    for path in arguments.films:
        film = read_film(path, bundle.description.pixels)
        if film.pixels is None:
            print(f"{path}: refused, {film.reason}")
            continue
        probabilities = ask(client, arguments.model, feeds(bundle, film.pixels, arguments.note))
        said = zip(bundle.findings, probabilities)
        print(path, {name: "not trained" if np.isnan(p) else round(float(p), 3) for name, p in said})


if __name__ == "__main__":
    main()
'''

"""A bundle as a model repository of Triton Inference Server: graph, configuration, labels, and a client to start from.

Triton serves the graph alone. The gate, the preprocessing and the check for images unlike the training ones stay with
the client, so the example client uses medsd's own.
"""

import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medsd.bundle import layout
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError

CONFIG, LABELS, CLIENT, VERSION = "config.pbtxt", "labels.txt", "client.py", "1"
MAX_BATCH = 32
PREFERRED = (8, 16, 32)
QUEUE_DELAY_US = 2000  # how long a request waits for others: a fraction of what a batch takes
WARM_UP = (1, 8)  # batch sizes computed before the model is called ready
TEMPLATES = Environment(
    loader=PackageLoader("medsd.export"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
)


def write_repository(bundle: Bundle, folder: Path) -> Path:
    """Write the bundle into a model repository.

    With a float16 graph in the bundle there are two models: NAME on the CPU by float32, NAME_gpu on GPUs by float16;
    without one, NAME alone, which Triton puts on every GPU, or on the CPU where there is none. Models of other names
    stay; one of that name raises BundleError. Returns the folder of the model that clients ask first.
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
    client = TEMPLATES.get_template("triton_client.py.jinja").render(name=name)
    (folder / CLIENT).write_text(client, encoding="utf-8")
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
    """The text of config.pbtxt (`inference.ModelConfig` of Triton's protocol), for a kind of instances."""
    description = bundle.description
    return TEMPLATES.get_template("config.pbtxt.jinja").render(
        name=name,
        kind=kind,
        inputs=[_tensor(bundle, each) for each in description.inputs],
        outputs=[_tensor(bundle, each) for each in description.outputs if each != "regions"],  # large, and for the app
        labels=LABELS,
        most=MAX_BATCH,
        preferred=PREFERRED,
        delay_us=QUEUE_DELAY_US,
        warm_up=WARM_UP,
        facts={"medsd.model": bundle.label, "medsd.model_sha256": bundle.model_sha256},
    )


def _tensor(bundle: Bundle, name: str) -> dict[str, Any]:
    """Name, type and shape without the batch of an input or output; no dimension is one of 1 to Triton, reshaped."""
    shape = bundle.description.shape_of(name)
    return {"name": name, "kind": "TYPE_INT64" if name in layout.INTEGERS else "TYPE_FP32", "shape": shape}

"""The export of a run: a bundle is put together beside its final place, checked, and moved into place."""

import json
import logging
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import load_file
from safetensors.torch import save_file
from scipy.special import expit

from medsd.bundle import layout
from medsd.calibration.fit import calibrated
from medsd.card import write_card
from medsd.errors import DataError
from medsd.evaluation.plots import project, save_png, write_plots
from medsd.evaluation.space import SPACE, draw_space
from medsd.export.onnx import ServingModel, export_onnx, input_names
from medsd.export.parity import check_parity, check_variant, torch_outputs
from medsd.export.quantise import write_float16, write_int8
from medsd.files import write_json
from medsd.networks.fusion import StudyModel
from medsd.pipeline.enough import not_trained
from medsd.pipeline.evidence_head import read_evidence_head
from medsd.pipeline.folder import Run, public_settings
from medsd.pipeline.judge import fit_distribution
from medsd.pipeline.prepare import note_input
from medsd.privacy import public_hasher
from medsd.scoring.verify import write_reference
from medsd.settings import Settings
from medsd.studies.manifest import SPLITS, Manifest
from medsd.training.loaders import StudyArrays, plain_batches, spread

log = logging.getLogger(__name__)

_PACKAGES = "medsd torch monai transformers tokenizers onnx onnxruntime-gpu onnxruntime numpy pydicom"
EXAMPLES = 6


def publish(run: Run, manifest: Manifest, arrays: StudyArrays, model: StudyModel) -> None:
    """Write `<run>/bundle`, without its cases.

    Raises:
        BundleError: the export failed, or the graph does not agree with PyTorch.
        DataError: see `check_protected`.
    """
    folder = run.bundle.with_name(".bundle.part")
    check_protected(run.settings, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = model.cpu()
    head, boxed = (None, ()) if model.image is None else read_evidence_head(run.evidence_head)
    serving = ServingModel(model, manifest.findings, run.read_calls().calibration, head)
    note = None
    if run.settings.network.note is not None:
        note = note_input(run.settings.network.note, run.tokenizer, manifest.findings)
        shutil.copyfile(run.tokenizer, folder / layout.TOKENIZER)
    variants = _write_graphs(run.settings, folder, serving, manifest, arrays, note)
    outputs, distribution = load_file(run.outputs), None
    if model.image is not None:
        distribution = fit_distribution(run, folder, manifest, arrays, model, outputs)
    _write_parts(run, folder, manifest, model, outputs)
    description = _describe(
        run,
        manifest,
        image=model.image is not None,
        note=note,
        evidence_grid=None if head is None else (head.average.shape[1], head.average.shape[2]),
        evidence_from_boxes=boxed,
        out_of_distribution=distribution,
        variants=variants,
        files=layout.hash_files(folder),
    )
    bundle = write_reference(layout.Bundle(folder, layout.write_description(folder, description)))
    write_card(folder, bundle.description)
    layout.write_description(folder, bundle.description)
    layout.Bundle.open(folder)  # what is published can be opened
    shutil.rmtree(run.bundle, ignore_errors=True)
    folder.replace(run.bundle)
    log.info("bundle: %s", run.bundle)


def _describe(run: Run, manifest: Manifest, **built: Any) -> layout.Description:
    """What bundle.json says: what the settings and the run say, and what was built."""
    settings, calls = run.settings, run.read_calls()
    return layout.Description(
        schema_version=layout.SCHEMA_VERSION,
        name=settings.name,
        version=settings.bundle.version,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        description=settings.bundle.description,
        synthetic=settings.data.source == "phantom",
        public=settings.bundle.public,
        finding_set=manifest.findings.key,
        findings=layout.finding_entries(manifest.findings),
        pixels=settings.pixels,
        embedding_size=settings.network.embedding,
        calibration=calls.calibration,
        not_trained=not_trained(manifest),
        calibration_choices=calls.choices,
        operating_points=calls.operating_points,
        provenance=_provenance(run, manifest),
        **built,
    )


def _write_parts(
    run: Run, folder: Path, manifest: Manifest, model: StudyModel, outputs: dict[str, npt.NDArray[np.float32]]
) -> None:
    """The weights, the reports of the evaluation, the validation patients, examples and plots."""
    weights = {
        name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("projection.")
    }
    (folder / "weights").mkdir()
    save_file(weights, folder / "weights" / "model.safetensors")
    for path in (*run.folder.glob("evaluation*.json"), run.conformal):
        shutil.copyfile(path, folder / path.name)
    patients = sorted(set(manifest.patients[manifest.rows("validation")].tolist()))
    if not manifest.keyed:  # keys, as the cases have them
        patients = [public_hasher(run.settings.name).patient_key(name) for name in patients]
    write_json(folder / layout.VALIDATION, patients)
    if run.settings.data.source == "phantom":
        _write_examples(folder / "examples", manifest)
    _draw(run, folder / "plots", manifest, outputs)


def check_protected(settings: Settings, manifest: Manifest) -> None:
    """Refuse to publish what was prepared for another kind of bundle than the settings ask for.

    Raises:
        DataError: the studies have this site's keys and the bundle is to be public; or the bundle is private, and the
            vocabulary of its notes was made before notes were scrubbed.
    """
    if settings.bundle.public and manifest.keyed:
        raise DataError("bundle.public is set, but the studies have the keys of this site; train under another name")
    if not settings.bundle.public and not manifest.keyed and settings.network.note is not None:
        raise DataError("the notes of this run were not scrubbed of identities; train under another name")


def _write_graphs(
    settings: Settings,
    folder: Path,
    serving: ServingModel,
    manifest: Manifest,
    arrays: StudyArrays,
    note: layout.NoteInput | None,
) -> dict[layout.Precision, layout.Variant]:
    """Export the graph, and those variants of fewer bits that cost little; parity.json has the figures of all."""
    onnx_path = folder / layout.MODEL
    metadata = {
        "name": settings.name,
        "version": settings.bundle.version,
        "findings": list(manifest.findings),
        "pixels": settings.pixels.model_dump(mode="json"),
        "note": note.model_dump() if note else None,
        "schema_version": layout.SCHEMA_VERSION,
    }
    tokens = note.max_tokens if note else 0
    export_onnx(serving, onnx_path, size=settings.pixels.size, max_tokens=tokens, metadata=metadata)
    feed, labels = _readings(serving, arrays, manifest.rows("test")[: settings.bundle.parity_studies])
    parity = check_parity(serving, onnx_path, feed, labels)
    wanted = [precision for precision in dict.fromkeys(settings.bundle.precisions) if precision != "float32"]
    expected = torch_outputs(serving, feed) if wanted else {}
    published: dict[layout.Precision, layout.Variant] = {}
    for precision in wanted:
        path = folder / layout.GRAPHS[precision]
        if precision == "float16":
            write_float16(onnx_path, path)
        else:
            rows = spread(manifest.rows("train"), settings.bundle.quantisation_studies)
            write_int8(onnx_path, path, _readings(serving, arrays, rows)[0])
        report = check_variant(precision, path, feed, labels, expected)
        parity.setdefault("variants", {})[precision] = report
        if not report["published"]:
            path.unlink()
            log.warning("%s is left out of the bundle: %s", path.name, report["reason"])
            continue
        published[precision] = layout.Variant(
            file=path.name,
            auroc_difference=report["auroc_difference"],
            embedding_cosine=report["embedding_cosine"]["mean"],
        )
    write_json(folder / "parity.json", parity)
    return published


def _readings(
    serving: ServingModel, arrays: StudyArrays, rows: npt.NDArray[np.int64]
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """The graph's inputs for `rows`, and the labels; with notes, as both modalities, image alone and note alone."""
    names = input_names(serving.model)
    modes = [(True, True)]
    if serving.model.image is not None and serving.model.note is not None:
        modes += [(True, False), (False, True)]
    parts = [
        {name: getattr(inputs, name).numpy() for name in names}
        for image, note in modes
        for inputs in plain_batches(arrays, rows, use_image=image, use_note=note)
    ]
    feed = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return feed, np.tile(arrays.labels[rows], (len(modes), 1))


def _draw(run: Run, folder: Path, manifest: Manifest, outputs: dict[str, npt.NDArray[np.float32]]) -> None:
    names, test = manifest.findings.names, manifest.rows("test")
    embeddings, labels = outputs["embeddings"][test], manifest.labels[test]
    coordinates = project(embeddings, seed=run.settings.seed)
    write_plots(
        folder,
        manifest.findings,
        labels,
        calibrated(outputs["logits"][test], run.read_calls().calibration, names),
        before=expit(outputs["logits"][test].astype(np.float64)),
        coordinates=coordinates,
        splits={split: manifest.labels[manifest.rows(split)] for split in SPLITS},
        minimum_positives=run.settings.evaluation.minimum_positives,
    )
    save_png(draw_space(embeddings, labels, coordinates=coordinates), folder / SPACE)


def _write_examples(folder: Path, manifest: Manifest) -> None:
    """A few images of test patients with their notes: those with the most findings, and one without any."""
    firsts: dict[tuple[str, ...], pd.Series] = {}
    for row in manifest.rows("test"):
        study = manifest.table.iloc[int(row)]
        if isinstance(study["path"], str) and isinstance(study["note"], str):
            firsts.setdefault(manifest.findings.decode(manifest.labels[row]), study)
    richest = sorted((found for found in firsts if found), key=len, reverse=True)[: EXAMPLES - 1]
    folder.mkdir()
    entries = []
    for number, found in enumerate([*richest, *([()] if () in firsts else [])], start=1):
        name = f"example_{number}{Path(firsts[found]['path']).suffix}"
        shutil.copyfile(manifest.root / firsts[found]["path"], folder / name)
        entries.append({"title": f"Synthetic radiograph {number}", "file": name, "note": firsts[found]["note"]})
    write_json(folder / "examples.json", entries)


def _provenance(run: Run, manifest: Manifest) -> layout.Provenance:
    settings, history = run.settings, json.loads(run.history.read_text(encoding="utf-8"))
    return layout.Provenance(
        data=settings.data.source,
        data_hash=manifest.data_hash(),
        split_hash=manifest.split_hash(),
        studies=manifest.counts(),
        patients=manifest.counts("patient"),
        licence=settings.bundle.licence,
        citation=settings.bundle.citation,
        config=public_settings(settings),
        git_commit=_git_commit(),
        packages={name: found.version for name in _PACKAGES.split() for found in islice(distributions(name=name), 1)},
        training_seconds=float(sum(stage["seconds"] for stage in history.values())),
    )


def _git_commit() -> str:
    """The commit of the code, where it runs from a checkout."""
    home = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""

"""What each step of a run does; `medsd.pipeline.run` decides which of them run."""

import json
import logging
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from medsd.calibration.conformal import read_conformal, write_conformal
from medsd.calibration.conformal_fit import conformal_scores
from medsd.calibration.fit import calibrated, choose_calibration, choose_operating_points
from medsd.errors import DataError
from medsd.evaluation import modalities
from medsd.evaluation.evidence import EVIDENCE
from medsd.evaluation.report import EvaluationReport, beside_of
from medsd.evaluation.report import evaluate as measure
from medsd.evaluation.robustness import ROBUSTNESS
from medsd.evaluation.saved import options_of
from medsd.evaluation.sources import SOURCES, measure_sources
from medsd.evaluation.subgroups import groups_of
from medsd.files import replacing, write_json
from medsd.findings import finding_set
from medsd.metrics.retrieval import Cases, measure_retrieval
from medsd.networks.fusion import StudyModel
from medsd.pipeline.enough import not_trained
from medsd.pipeline.evidence_head import fit_evidence_head, read_evidence_head, write_evidence_head
from medsd.pipeline.folder import FittedCalls, Run
from medsd.pipeline.judge import Outputs, judge_evidence, judge_robustness
from medsd.pipeline.prepare import load_arrays, write_tokenizer
from medsd.pipeline.publish import publish
from medsd.settings import Settings
from medsd.studies.manifest import SELECTED, Manifest
from medsd.training import stages
from medsd.training.checkpoints import load_checkpoint, restore_model, save_checkpoint
from medsd.training.contrast import read_sentences
from medsd.training.distributed import is_first, wait_for_all
from medsd.training.engine import StageResult
from medsd.training.hide_sources import hide_sources
from medsd.training.loaders import StudyArrays
from medsd.training.memory import keep_freed_memory

log = logging.getLogger(__name__)

# What a study is read from: the modalities it has, or one of them alone.
READINGS = {"": (True, True), "_image": (True, False), "_note": (False, True)}


def pretrain(run: Run) -> None:
    """SD pretraining from the settings' initial weights; before it, the tokenizer of the notes."""
    if run.settings.network.note is not None and is_first():
        write_tokenizer(run, Manifest.read(run.manifest))
    wait_for_all()
    manifest, arrays = _data(run)
    model = _model(run.settings)
    rows = stages.labelled_rows(arrays.labels, manifest.rows("train"))
    result = stages.pretrain(run.settings, model, arrays, rows, run.folder)
    _note_history(run, "pretrain", result)


def finetune(run: Run) -> None:
    """Fine-tuning from the pretrained weights; then the outputs of every study."""
    manifest, arrays = _data(run)
    model = _model(run.settings)
    if run.settings.training.pretrain.epochs:
        restore_model(model, load_checkpoint(run.pretrained).part("best"), run.pretrained)
    train, validation = manifest.rows("train"), manifest.rows("validation")
    labelled = stages.labelled_rows(arrays.labels, train)
    result = stages.finetune(run.settings, model, arrays, labelled, validation, run.folder)
    _note_history(run, "finetune", result)
    rounds = stages.self_train(run.settings, model, arrays, train, validation, run.folder, result)
    for number, each in enumerate(rounds, start=1):
        _note_history(run, f"round {number}", each)
    if not is_first():
        return
    if run.settings.training.hide_sources and model.image is not None:
        hide_sources(model, arrays, manifest.table, train)
    save_checkpoint(run.model, {"model": model.state_dict()}, {"epoch": result.best_epoch})
    _save_outputs(run, model, arrays)


def calibrate(run: Run) -> None:
    """Calibration, operating points, conformal scores, the head of the evidence maps: chosen on validation patients."""
    _choose_calls(run)
    run.evidence_head.unlink(missing_ok=True)
    if run.settings.network.image is not None:
        manifest, arrays = _data(run)
        write_evidence_head(run.evidence_head, *fit_evidence_head(run.settings, manifest, arrays, _trained(run)))


def _choose_calls(run: Run) -> None:
    """What turns logits into probabilities and calls."""
    manifest, settings = Manifest.read(run.manifest), run.settings.evaluation
    rows = manifest.rows("validation")
    names, least = manifest.findings.without(not_trained(manifest)).names, settings.minimum_positives
    kept = np.isin(manifest.findings.names, names)
    logits, labels = load_file(run.outputs)["logits"][rows][:, kept], manifest.labels[rows][:, kept]
    calibration, choices = choose_calibration(
        logits, labels, names, minimum_positives=least, method=settings.calibration
    )
    probabilities = calibrated(logits, calibration, names)
    points = choose_operating_points(
        probabilities, labels, names, minimum_positives=least, rule=settings.operating_points
    )
    scores = conformal_scores(probabilities, labels, manifest.patients[rows], names, seed=run.settings.seed)
    write_conformal(run.conformal, scores)
    calls = FittedCalls(calibration=calibration, choices=choices, operating_points=points)
    write_json(run.calibration, calls.model_dump(mode="json"))


def evaluate(run: Run) -> None:
    """Everything that is reported of the test patients, once."""
    for old in run.folder.glob("evaluation*.json"):
        old.unlink()
    manifest, outputs = Manifest.read(run.manifest), load_file(run.outputs)
    report = _measure(run, manifest, outputs, "")
    report.write(run.evaluation)
    if run.settings.network.image is not None and run.settings.network.note is not None:
        for reading in ("_image", "_note"):
            _measure(run, manifest, outputs, reading).write(run.evaluation.with_stem(f"evaluation{reading}"))
        _measure_modalities(run, manifest, outputs)
    if run.settings.network.image is not None:
        _judge_images(run)
        _judge_sources(run, manifest, outputs)
    for line in report.lines():
        log.info("test: %s", line)
    log.info("test: nDCG@10 %s", report.retrieval.ndcg if report.retrieval else None)


def export(run: Run) -> None:
    """The bundle: graph, parity, statistics, card; moved into place when all of it holds."""
    manifest, arrays = _data(run)
    publish(run, manifest, arrays, _trained(run))


def _measure(run: Run, manifest: Manifest, outputs: Outputs, reading: str) -> EvaluationReport:
    train, test, selected = (manifest.rows(split) for split in ("train", "test", SELECTED))
    calls = run.read_calls()
    cases = Cases(outputs["embeddings"][train], manifest.labels[train], manifest.patients[train])
    whole = not reading  # conformal scores are those of whole studies
    beside = beside_of(manifest, outputs["logits"], test, selected, run.settings.evaluation, train) if whole else None
    return measure(
        manifest.findings,
        outputs[f"logits{reading}"][test],
        manifest.labels[test],
        manifest.patients[test],
        calibration=calls.calibration,
        operating_points=calls.operating_points,
        embeddings=outputs[f"embeddings{reading}"][test],
        index=cases,
        settings=run.settings.evaluation,
        seed=run.settings.seed,
        choices=calls.choices,
        conformal=read_conformal(run.conformal) if whole else None,
        groups=groups_of(manifest.table.iloc[test]) if whole else None,
        beside=beside,
        not_trained=not_trained(manifest),
    )


def _measure_modalities(run: Run, manifest: Manifest, outputs: Outputs) -> None:
    """What depends on image and note, of the test studies that have both; too few of them make no report."""
    table, test = manifest.table, manifest.rows("test")
    seen, told = table["path"].notna().to_numpy(), table["note"].notna().to_numpy()
    both, images = test[seen[test] & told[test]], manifest.rows("train")[seen[manifest.rows("train")]]
    target, patients = manifest.labels, manifest.patients
    options = options_of(run.settings.evaluation, run.settings.seed)
    try:
        found, sentences = None, None
        if len(both) and len(images):
            found = measure_retrieval(
                Cases(outputs["embeddings_note"][both], target[both], patients[both]),
                Cases(outputs["embeddings_image"][images], target[images], patients[images]),
                options,
            )
        if "embeddings_sentence" in outputs:
            looked = test[seen[test]]
            sentences = modalities.score_sentences(
                manifest.findings,
                outputs["embeddings_sentence"],
                outputs["embeddings_image"][looked],
                target[looked],
                patients[looked],
                options,
            )
        image, note = (outputs[f"logits_{part}"][both] for part in ("image", "note"))
        report = modalities.measure_reliance(image, note, target[both], patients[both], options, found, sentences)
    except DataError as error:
        log.warning("image and note: %s", error)
        return
    report.write(run.folder / modalities.MODALITIES)
    if warning := report.warning:
        log.warning("%s", warning)


def _judge_images(run: Run) -> None:
    """Evidence maps against boxes, if the data set has any; and calls of images that are only handled differently."""
    manifest, arrays = _data(run)
    model, (head, _) = _trained(run), read_evidence_head(run.evidence_head)
    if maps := judge_evidence(run.settings, manifest, arrays, model, head):
        maps.write(run.folder / EVIDENCE)
    if changes := judge_robustness(run, manifest, arrays, model):
        changes.write(run.folder / ROBUSTNESS)


def _judge_sources(run: Run, manifest: Manifest, outputs: Outputs) -> None:
    """Whether embeddings show which source an image comes from; one source makes no report."""
    if manifest.table["source"].nunique() < 2:
        return
    report = measure_sources(
        manifest.table,
        manifest.labels,
        outputs.get("embeddings_image", outputs["embeddings"]),
        np.load(run.pixels, mmap_mode="r", allow_pickle=False),
        options_of(run.settings.evaluation, run.settings.seed),
    )
    if report is None:
        log.warning("sources: too few images with the same labels and view to see whether embeddings tell them apart")
        return
    report.write(run.folder / SOURCES)
    for pair in report.pairs:
        log.log(logging.WARNING if pair.above else logging.INFO, "%s", pair.sentence)


def _data(run: Run) -> tuple[Manifest, StudyArrays]:
    keep_freed_memory()
    if run.settings.training.threads:
        torch.set_num_threads(run.settings.training.threads)
    manifest = Manifest.read(run.manifest)
    return manifest, load_arrays(run, manifest)


def _trained(run: Run) -> StudyModel:
    """The fine-tuned model, on the CPU."""
    model = _model(run.settings)
    restore_model(model, load_checkpoint(run.model).part("model"), run.model)
    return model


def _model(settings: Settings) -> StudyModel:
    """A new model with seeded weights."""
    torch.manual_seed(settings.seed)
    tokenizer = None
    if settings.network.note is not None:
        tokenizer = Tokenizer.from_file(str(Run(settings).tokenizer))
    return StudyModel(settings.network, len(finding_set(settings.findings)), settings.pixels.size, tokenizer)


def _save_outputs(run: Run, model: StudyModel, arrays: StudyArrays) -> None:
    rows = np.arange(len(arrays))
    outputs: Outputs = {}
    for reading, (image, note) in READINGS.items():
        if reading and (arrays.note_ids is None or arrays.pixels is None):
            continue
        logits, embeddings = stages.read_studies(model, arrays, rows, use_image=image, use_note=note)
        outputs[f"logits{reading}"], outputs[f"embeddings{reading}"] = logits, embeddings
    if arrays.sentences is not None:
        outputs["embeddings_sentence"] = read_sentences(model, arrays.sentences)
    with replacing(run.outputs) as draft:
        save_file(outputs, draft)


def _note_history(run: Run, stage: str, result: StageResult) -> None:
    if not is_first():
        return
    history: dict[str, Any] = json.loads(run.history.read_text(encoding="utf-8")) if run.history.exists() else {}
    epochs = [{name: None if np.isnan(value) else value for name, value in e.items()} for e in result.history]
    history[stage] = {"epochs": epochs, "best_epoch": result.best_epoch, "seconds": round(result.seconds, 1)}
    write_json(run.history, history)
    log.info("%s took %.0f s", stage, result.seconds)

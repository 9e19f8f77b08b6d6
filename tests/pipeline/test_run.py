"""A run from nothing to a bundle: what it leaves, how it resumes, what it refuses."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.errors import BundleError, DataError
from medsd.inference.predict import Predictor
from medsd.pipeline import run as running
from medsd.pipeline.evidence_head import read_evidence_head
from medsd.pipeline.folder import Run
from medsd.pipeline.publish import check_protected
from medsd.pipeline.run import fingerprint_of, run_steps
from medsd.privacy import KeyedHasher
from medsd.settings import MergeSource, load_settings, save_settings
from medsd.studies.manifest import Manifest
from medsd.studies.protect import protect
from medsd.training.checkpoints import load_checkpoint
from tests.runs import small_settings

STEPS_OF_AN_EPOCH = 5  # 42 of 60 phantoms train, 8 in a batch


def test_a_run_leaves_a_bundle_that_opens_with_all_that_belongs_to_it(finished: Run) -> None:
    bundle = Bundle.open(finished.bundle)
    assert bundle.description.synthetic and bundle.description.note is not None
    assert bundle.description.provenance.split_hash == Manifest.read(finished.manifest).split_hash()
    for name in ("README.md", "evaluation.json", "parity.json", "weights/model.safetensors", "tokenizer.json"):
        assert name in bundle.description.files
    assert not {"root", "output"} & {
        *bundle.description.provenance.config,
        *bundle.description.provenance.config["data"],
    }


def test_the_bundle_reads_image_note_and_both_differently(finished: Run) -> None:
    predictor, manifest = Predictor(finished.bundle), Manifest.read(finished.manifest)
    row = manifest.table[manifest.table["note"].notna()].iloc[0]
    film, note = manifest.root / row["path"], row["note"]
    readings = [predictor(film), predictor(None, note), predictor(film, note)]
    assert not any(reading.refused for reading in readings)
    values = np.stack([reading.values for reading in readings])
    assert np.abs(values[0] - values[1]).max() > 1e-4 and np.abs(values[0] - values[2]).max() > 1e-4


def test_serving_gives_what_training_saw(finished: Run) -> None:
    manifest, outputs = Manifest.read(finished.manifest), load_file(finished.outputs)
    predictor, row = Predictor(finished.bundle), int(manifest.rows("test")[0])
    study = manifest.table.iloc[row]
    prediction = predictor(manifest.root / study["path"], study["note"])
    np.testing.assert_allclose(prediction.logits, outputs["logits"][row], atol=1e-4)
    np.testing.assert_allclose(prediction.embedding, outputs["embeddings"][row], atol=1e-4)


def test_the_cases_are_the_training_studies_and_no_others(finished: Run) -> None:
    manifest = Manifest.read(finished.manifest)
    cases = CaseIndex.open(finished.bundle / "cases", model_sha256=Bundle.open(finished.bundle).model_sha256)
    assert len(cases) == len(manifest.rows("train"))


def test_identifiers_and_machine_paths_are_in_no_file_of_the_bundle(finished: Run) -> None:
    manifest = Manifest.read(finished.manifest)
    needles = [manifest.table["patient"].iloc[0].encode(), str(finished.folder.parent).encode()]
    for path in finished.bundle.rglob("*"):
        if path.is_file() and "examples" not in path.parts:
            assert not any(needle in path.read_bytes() for needle in needles), path


def test_a_second_run_does_nothing_and_a_changed_setting_repeats_only_what_depends_on_it(
    finished: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []
    steps = tuple(replace(step, work=lambda run, name=step.name: ran.append(name)) for step in running.STEPS)
    monkeypatch.setattr(running, "STEPS", steps)
    shutil.copytree(finished.folder, tmp_path / finished.folder.name)
    settings = finished.settings.model_copy(update={"output": tmp_path})
    run_steps(settings)
    assert ran == []
    changed = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"bootstrap": 60})})
    run_steps(changed)
    assert ran == ["evaluate", "export", "index"]
    ran.clear()
    run_steps(changed, "export", again=True)
    run_steps(changed)
    assert ran == ["export", "index"]


def test_a_second_process_is_kept_out(finished: Run) -> None:
    with running.alone(finished.folder), pytest.raises(DataError, match="another medsd works on this run"):
        run_steps(finished.settings)


MORTAL = """
import os, signal, sys
from medsd.settings import load_settings
from medsd.training.engine import Stage
from medsd.pipeline.run import run_steps

config, stage, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
take = Stage._step

def step(self, batch, number):
    if self.name == stage and number + 1 == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, batch, number)

Stage._step = step
run_steps(load_settings(config), "finetune")
"""


def _run_until_killed(config: Path, stage: str, step: int) -> None:
    """A process that trains, and dies by SIGKILL where the stage would take the step, from 1."""
    command = [sys.executable, "-c", MORTAL, str(config), stage, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_run_killed_at_random_steps_ends_with_the_same_weights_to_the_last_bit(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.folder.parent.parent / "studies", tmp_path / "studies")
    settings = small_settings(tmp_path, "training.checkpoint_every=0.000001", "training.workers=1")
    save_settings(settings, tmp_path / "phantom.yaml")
    assert load_settings(tmp_path / "phantom.yaml") == settings
    rng, folder = np.random.default_rng(), settings.run_folder
    for stage in ("pretrain", "finetune"):
        step = int(rng.integers(2, 2 * STEPS_OF_AN_EPOCH + 1))
        _run_until_killed(tmp_path / "phantom.yaml", stage, step)
        meta = load_checkpoint(folder / f"{stage}.safetensors").meta
        assert len(meta["history"]) * STEPS_OF_AN_EPOCH + meta["done"] == step - 1
        assert not (folder / "done" / f"{stage}.json").exists()
    resumed = run_steps(settings, "finetune")
    for name in ("pretrain", "finetune", "model", "outputs"):
        expected = load_file(finished.folder / f"{name}.safetensors")
        for key, values in load_file(resumed.folder / f"{name}.safetensors").items():
            np.testing.assert_array_equal(values, expected[key], err_msg=f"{name}: {key}")
    for stage in ("pretrain", "finetune"):
        one, other = (load_checkpoint(run.folder / f"{stage}.safetensors").meta for run in (finished, resumed))
        assert one["history"] == other["history"]


def test_films_that_cannot_be_used_are_listed_with_a_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"film_{number}.png,p{number},{('No Finding', 'Effusion')[number % 2]}" for number in range(12)]
    for row in rows:
        Image.fromarray((rng.random((200, 200)) * 255).astype(np.uint8)).save(tmp_path / row.split(",")[0])
    (tmp_path / "studies.csv").write_text("image,patient,findings\n" + "\n".join(rows), encoding="utf-8")
    victim = tmp_path / "film_5.png"
    victim.write_bytes(victim.read_bytes()[:700])
    config = Path(__file__).parents[2] / "configs" / "own.yaml"
    settings = load_settings(
        config, [f"data.root={tmp_path}", "data.finding_list=findings", f"output={tmp_path / 'runs'}"]
    )
    run = run_steps(settings, "prepare")
    table = Manifest.read(run.manifest).table
    assert len(table) == 11 == len(np.load(run.pixels)) and victim.name not in set(table["path"])
    assert "film_5.png,cannot_decode" in run.rejected.read_text(encoding="utf-8")


def test_a_bundle_whose_file_was_changed_is_refused(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.bundle, tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx was changed after export"):
        Bundle.open(tmp_path / "bundle")


def test_studies_prepared_for_one_kind_of_bundle_are_not_published_as_the_other(finished: Run) -> None:
    settings = finished.settings
    private = settings.model_copy(update={"bundle": settings.bundle.model_copy(update={"public": False})})
    manifest = Manifest.read(finished.manifest)
    check_protected(settings, manifest)
    with pytest.raises(DataError, match="not scrubbed of identities; train under another name"):
        check_protected(private, manifest)
    keyed = protect(manifest, KeyedHasher(b"a key for tests alone"))
    check_protected(private, keyed)
    with pytest.raises(DataError, match="public is set"):
        check_protected(settings, keyed)


def test_a_key_of_one_merged_source_changes_the_fingerprint() -> None:
    settings = load_settings(Path(__file__).parents[2] / "configs" / "merge.yaml")
    assert isinstance(settings.data, MergeSource)
    *others, openi = settings.data.sources
    data = settings.data.model_copy(update={"sources": [*others, openi.model_copy(update={"note": "report"})]})
    changed = settings.model_copy(update={"data": data})
    assert fingerprint_of(changed, "prepare") != fingerprint_of(settings, "prepare")


def test_calibrate_leaves_the_head_that_draws_the_evidence_maps_and_export_asks_for_it(finished: Run) -> None:
    head, boxed = read_evidence_head(finished.evidence_head)
    assert not boxed and head.average.any() and not head.pointer.any()  # phantoms have no boxes
    description = Bundle.open(finished.bundle).description
    assert description.evidence_from_boxes == () and head.average.shape[1:] == description.evidence_grid

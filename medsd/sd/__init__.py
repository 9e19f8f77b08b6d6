"""The Similarity-Dissimilarity loss and its rivals, usable alone.

`medsd.sd.relations` needs NumPy or PyTorch, whichever its arrays are of. Everything else here needs PyTorch, and is
imported at its first use, so that the serving side can read the relations without it.
"""

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
    name: module
    for module, names in {
        "losses": "ContrastiveLoss SDLoss",
        "rivals": "AnyLoss AllLoss SupConLoss JaccardLoss MultiSupConLoss OverlapLoss JSCLLoss JSPCLLoss "
        "LOSSES loss_by_name family_table",
        "by_finding": "MulSupConLoss WsMulSupConLoss StepwiseLoss PrototypeLoss IntraLabelLoss "
        "complement_frequency_weights",
        "memory": "MemoryQueue",
        "crossmodal": "CrossModalLoss",
    }.items()
    for name in names.split()
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

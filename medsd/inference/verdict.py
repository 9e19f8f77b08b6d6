"""What is said of one film's likeness to the training films, and in which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WORDS: Mapping[str, str] = {
    "greys": "light and dark do not lie as in a frontal chest",
    "edges": "its outlines are not those of a frontal chest",
    "network": "the network's own features of it lie far from those of its training films",
}
"""Check → what it means for a person when it speaks."""


@dataclass(frozen=True)
class Verdict:
    """What one film amounts to.

    Attributes:
        value: how strange the film is, as a share of the limit; above 1 it is unlike the training films.
        reason: "", "out_of_distribution" or "inverted_look".
        far: so far away that the model should not read it, even where the policy only warns.
        detail: which check spoke and why, in words; "" where none did.
        firm: whether the limit is one to refuse by; one that hangs on few films is only warned about, unless `far`.
    """

    value: float
    reason: Literal["", "out_of_distribution", "inverted_look"] = ""
    far: bool = False
    detail: str = ""
    firm: bool = True

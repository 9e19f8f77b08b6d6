"""The referrer's note: what was known before anybody read the image.

It tells of age, complaint, history and devices in the words of a request form (`note_words.yaml`). Symptoms follow the
findings with noise: some are missing, some mislead, some notes say nothing, one in ten is missing. No note names a
finding as a result of imaging; a test checks that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medsd.files import packaged
from medsd.studies.phantom.anatomy import Habitus
from medsd.studies.phantom.disease import Condition

_WORDS: dict[str, Any] = packaged("medsd.studies.phantom", "note_words.yaml")
_SYMPTOMS: dict[str, list[dict[str, Any]]] = _WORDS["symptoms"]


def write_note(rng: np.random.Generator, habitus: Habitus, condition: Condition, *, visit: int) -> str | None:
    """The note for an image, None where the referrer wrote none; of `condition` it knows only the symptoms."""
    chance = rng.random()
    if chance < 0.10:
        return None
    if chance < 0.17:
        return _pick(rng, _WORDS["empty"])
    facts = _symptoms(rng, condition) + _known_devices(rng, condition)
    distractors = int(rng.choice([0, 1, 2, 3], p=[0.3, 0.38, 0.22, 0.1]))
    facts += [_pick(rng, _WORDS["distractors"]) for _ in range(distractors)]
    if rng.random() < 0.07:  # a complaint that the image will not explain
        groups = _SYMPTOMS[str(rng.choice(list(_SYMPTOMS)))]
        wordings = groups[int(rng.integers(len(groups)))]["wordings"]
        facts.append(_sided(_pick(rng, wordings), int(rng.choice([-1, 1]))))
    return _phrase(rng, habitus, condition, list(dict.fromkeys(facts)), visit)


def _symptoms(rng: np.random.Generator, condition: Condition) -> list[str]:
    facts: list[str] = []
    for finding in condition.findings:
        lesion = max((item for item in condition.lesions if item.finding == finding), key=lambda item: item.severity)
        for group in _SYMPTOMS.get(finding, []):
            if rng.random() < group["chance"] * (0.55 + 0.6 * lesion.severity):  # slight disease is told of less
                facts.append(_sided(_pick(rng, group["wordings"]), lesion.side))
    return [facts[i] for i in rng.permutation(len(facts))]


def _known_devices(rng: np.random.Generator, condition: Condition) -> list[str]:
    return [
        _sided(_pick(rng, _WORDS["devices"][item.kind]), item.side)
        for item in condition.lesions
        if item.finding == "Support Devices" and rng.random() < (0.25 if item.kind == "leads" else 0.55)
    ]


def _phrase(rng: np.random.Generator, habitus: Habitus, condition: Condition, facts: list[str], visit: int) -> str:
    """Put the facts into one of several forms of a request."""
    age, woman = habitus.age, habitus.sex == "F"
    long = f"{age}-year-old {'woman' if woman else 'man'}", f"{age} y/o {'female' if woman else 'male'}"
    who = _pick(rng, (f"{age}{habitus.sex}", *long, ""))
    follow = _pick(rng, ("Follow-up film. ", "Compare with previous. ", "Progress film. ", "")) if visit else ""
    errand = _pick(rng, _WORDS["errands"]) if rng.random() < (0.12 if condition.findings else 0.75) else ""
    told = _pick(rng, (", ", "; ", ". ")).join(facts)
    questions = _WORDS["questions"].get(condition.setting)
    question = _pick(rng, questions) if questions and rng.random() < 0.35 else ""
    pieces = [
        [who, errand, told, question],
        [errand, f"{who}: {told}" if who and told else who or told, question],
        [f"Indication: {told or errand or 'chest symptoms'}", f"Patient: {who}" if who else "", question],
        [f"History: {who + ', ' if who else ''}{told or 'nil of note'}", errand, question],
    ][int(rng.integers(4))]
    sentences = [piece.rstrip(". ") for piece in pieces if piece]
    text = follow + ". ".join(text[:1].upper() + text[1:] for text in sentences)
    text = text.strip() or _pick(rng, _WORDS["empty"])
    return text if text.endswith((".", "?")) else text + "."


def _sided(wording: str, side: int) -> str:
    return wording.replace("{side}", "right" if side == -1 else "left")


def _pick(rng: np.random.Generator, wordings: Sequence[str]) -> str:
    return wordings[int(rng.integers(len(wordings)))]

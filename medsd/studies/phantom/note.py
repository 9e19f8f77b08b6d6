"""The referrer's note: what was known before anybody read the film.

It tells of age, complaint, history and devices in the words of a request form. Symptoms follow the findings with
noise: some are missing, some are red herrings, some notes say nothing, one in ten is not there at all. No note names
a finding as a result of imaging; a test holds it to that.
"""

from __future__ import annotations

import numpy as np

from medsd.studies.phantom.anatomy import Habitus
from medsd.studies.phantom.disease import Condition

# Finding → (chance of being told, wordings). Words of the vocabulary itself never stand here.
_SYMPTOMS: dict[str, tuple[tuple[float, tuple[str, ...]], ...]] = {
    "Cardiomegaly": (
        (
            0.45,
            (
                "long-standing hypertension",
                "known hypertension",
                "dilated cardiomyopathy on echo last year",
                "ischaemic heart disease",
            ),
        ),
        (0.35, ("palpitations", "atrial fibrillation", "displaced apex beat", "systolic murmur")),
        (0.20, ("reduced exercise tolerance", "climbs one flight only", "tires easily")),
    ),
    "Edema": (
        (0.55, ("orthopnoea", "needs three pillows", "cannot lie flat", "wakes breathless at night")),
        (0.45, ("bibasal crackles", "fine crackles both bases", "crepitations to the mid zones", "pink frothy sputum")),
        (0.30, ("ankle swelling", "raised JVP", "BNP markedly raised", "weight up 4 kg in a week")),
    ),
    "Effusion": (
        (
            0.45,
            (
                "stony dull at the {side} base",
                "dull percussion note {side} base",
                "reduced air entry {side} base",
                "reduced breath sounds {side} lower zone",
            ),
        ),
        (
            0.30,
            ("pleuritic pain on the {side}", "heaviness on the {side} side of the chest", "discomfort {side} flank"),
        ),
        (0.25, ("breathless for two weeks", "gradually worsening dyspnoea", "short of breath on mild exertion")),
    ),
    "Consolidation": (
        (0.65, ("fever 38.9", "febrile since yesterday", "rigors", "pyrexial, temp 39.2", "chills and sweats")),
        (0.60, ("productive cough", "cough with green sputum", "rusty sputum", "purulent sputum", "new cough")),
        (
            0.40,
            (
                "CRP 186",
                "white cells 17.4",
                "raised inflammatory markers",
                "bronchial breathing {side}",
                "coarse crackles {side}",
            ),
        ),
    ),
    "Atelectasis": (
        (
            0.45,
            (
                "day 2 after laparotomy",
                "post-op day 1, shallow breathing",
                "drowsy after anaesthetic",
                "poor cough effort",
                "splinting after surgery",
            ),
        ),
        (
            0.30,
            ("saturations falling to 89%", "new oxygen requirement", "desaturating on air", "mucus plugging suspected"),
        ),
        (0.20, ("bedbound for a week", "reduced breath sounds {side} base", "trouble clearing secretions")),
    ),
    "Mass": (
        (
            0.55,
            (
                "haemoptysis",
                "coughed up blood twice",
                "blood-streaked sputum",
                "persistent cough for three months",
                "hoarse voice",
            ),
        ),
        (0.50, ("weight loss of 8 kg", "unintended weight loss", "loss of appetite", "night sweats and weight loss")),
        (
            0.55,
            ("40 pack-years", "heavy smoker", "ex-smoker, 30 pack-years", "smokes 20 a day", "worked with asbestos"),
        ),
    ),
    "Pneumothorax": (
        (
            0.60,
            (
                "sudden {side}-sided chest pain",
                "sharp pain {side} chest since this morning",
                "sudden onset breathlessness",
                "acute {side} chest pain while lifting",
            ),
        ),
        (0.35, ("reduced breath sounds {side}", "hyperresonant {side}", "absent breath sounds {side} apex")),
        (
            0.30,
            (
                "fall from a ladder",
                "after {side} subclavian puncture",
                "rib injury {side}",
                "tall thin smoker",
                "after CT-guided biopsy",
                "stab wound {side} chest",
            ),
        ),
    ),
}
_DEVICES: dict[str, tuple[str, ...]] = {
    "pacemaker": ("dual-chamber pacemaker", "pacemaker since 2019", "PPM in situ", "ICD implanted"),
    "line": (
        "central line placed",
        "right jugular access, check position",
        "CVC inserted on the ward",
        "on parenteral nutrition",
    ),
    "port": ("chemotherapy via port", "port in situ", "receiving chemotherapy"),
    "tracheal tube": ("intubated", "ventilated", "intubated overnight, check position", "on the ventilator day 3"),
    "gastric tube": ("NG feeding", "NG tube passed, confirm position", "enteral feeding started"),
    "drain": (
        "chest drain inserted {side}",
        "drain on suction",
        "check after drain insertion",
        "ICD {side} side, day 2",
    ),
    "leads": ("monitored bed", "on telemetry", "continuous monitoring"),
    "wires": ("previous CABG", "valve replacement 2015", "sternotomy years ago", "CABG x3"),
}
_DISTRACTORS = (
    "known COPD", "type 2 diabetes", "asthma", "hypothyroidism", "non-smoker", "no fever", "chronic back pain",
    "mild cough", "anxious", "chest pain, troponin negative", "reflux", "osteoporosis", "former smoker",
    "breathless on exertion", "obese", "recent long flight", "hypertension", "chronic kidney disease",
    "low-grade temperature", "previous TB contact", "tired", "dizzy spells", "dry cough", "palpitations",
    "rheumatoid arthritis on methotrexate", "statin only", "fall at home", "confused", "wheeze",
    "atypical chest pain", "weight stable",
)  # fmt: skip
_ERRANDS = (
    "Pre-operative assessment", "Routine check", "Medical examination before employment", "Pre-op, hip replacement",
    "Annual review", "Visa medical", "Baseline before biologic therapy", "Screening, TB contact",
    "Before cataract surgery", "Pre-assessment clinic", "Cough for a few days", "Chest pain, low suspicion",
    "Follow-up", "Left-sided twinges, worried", "Baseline film",
)  # fmt: skip
_EMPTY = (
    "Routine.",
    "Chest.",
    "Please report.",
    "Any change?",
    "As discussed.",
    "CXR please.",
    "Unwell.",
    "See previous request.",
    "Review.",
)
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "heart failure": ("? failure", "Cardiac cause?", "Decompensated?", "Please assess heart and lungs."),
    "infection": ("? chest infection", "LRTI?", "Source of sepsis?", "? pneumonia"),
    "malignancy": ("Exclude malignancy.", "? neoplasm", "Two-week-wait referral.", "Underlying cause?"),
    "pleural air": ("Please exclude air leak.", "? rib injury", "Urgent please.", "Lung up?"),
    "intensive care": ("Daily film.", "Check positions.", "Progress?", "ITU film."),
}


def write_note(rng: np.random.Generator, habitus: Habitus, condition: Condition, *, visit: int) -> str | None:
    """The note for a film, or None where the referrer wrote none.

    Args:
        rng: the study's stream for its note.
        habitus: the patient.
        condition: what the film shows, of which the note knows only the symptoms.
        visit: 0 for the first film of the patient.
    """
    chance = rng.random()
    if chance < 0.10:
        return None
    if chance < 0.17:
        return _pick(rng, _EMPTY)
    facts = _symptoms(rng, condition) + _known_devices(rng, condition)
    herrings = int(rng.choice([0, 1, 2, 3], p=[0.3, 0.38, 0.22, 0.1]))
    facts += [_pick(rng, _DISTRACTORS) for _ in range(herrings)]
    if rng.random() < 0.07:  # a complaint that the film will not explain
        facts.append(_misleading(rng))
    return _phrase(rng, habitus, condition, list(dict.fromkeys(facts)), visit)


def _symptoms(rng: np.random.Generator, condition: Condition) -> list[str]:
    facts: list[str] = []
    for finding in condition.findings:
        lesion = max((item for item in condition.lesions if item.finding == finding), key=lambda item: item.severity)
        if finding not in _SYMPTOMS:
            continue
        for rate, wordings in _SYMPTOMS[finding]:
            # Slight disease is told of less.
            if rng.random() < rate * (0.55 + 0.6 * lesion.severity):
                facts.append(_fill(_pick(rng, wordings), _side(lesion.side)))
    return [facts[i] for i in rng.permutation(len(facts))]


def _misleading(rng: np.random.Generator) -> str:
    groups = _SYMPTOMS[str(rng.choice(list(_SYMPTOMS)))]
    _, wordings = groups[int(rng.integers(len(groups)))]
    return _fill(_pick(rng, wordings), _side(int(rng.choice([-1, 1]))))


def _known_devices(rng: np.random.Generator, condition: Condition) -> list[str]:
    return [
        _fill(_pick(rng, _DEVICES[item.kind]), _side(item.side))
        for item in condition.lesions
        if item.finding == "Support Devices" and rng.random() < (0.25 if item.kind == "leads" else 0.55)
    ]


def _phrase(rng: np.random.Generator, habitus: Habitus, condition: Condition, facts: list[str], visit: int) -> str:
    """Put the facts into one of several forms of a request."""
    woman = habitus.sex == "F"
    short = f"{habitus.age}{habitus.sex}"
    who = _pick(
        rng,
        (
            short,
            f"{habitus.age}-year-old {'woman' if woman else 'man'}",
            f"{habitus.age} y/o {'female' if woman else 'male'}",
            "",
        ),
    )
    follow = _pick(rng, ("Follow-up film. ", "Compare with previous. ", "Progress film. ", "")) if visit else ""
    errand = _pick(rng, _ERRANDS) if rng.random() < (0.75 if not condition.findings else 0.12) else ""
    told = _pick(rng, (", ", "; ", ". ")).join(facts)
    question = (
        _pick(rng, _QUESTIONS[condition.setting]) if condition.setting in _QUESTIONS and rng.random() < 0.35 else ""
    )
    pieces = {
        0: [who, errand, told, question],
        1: [errand, f"{who}: {told}" if who and told else who or told, question],
        2: [f"Indication: {told or errand or 'chest symptoms'}", f"Patient: {who}" if who else "", question],
        3: [f"History: {who + ', ' if who else ''}{told or 'nil of note'}", errand, question],
    }[int(rng.integers(4))]
    text = follow + ". ".join(_capital(piece.rstrip(". ")) for piece in pieces if piece)
    text = text.strip() or _pick(rng, _EMPTY)
    return text if text.endswith((".", "?")) else text + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _fill(wording: str, side: str) -> str:
    return wording.replace("{side}", side)


def _side(side: int) -> str:
    return {-1: "right", 1: "left"}.get(side, "left")


def _pick(rng: np.random.Generator, wordings: tuple[str, ...]) -> str:
    return wordings[int(rng.integers(len(wordings)))]

"""How a reading is said in words: the one list for the page, the documents, the tables and the terminal."""

from collections import Counter
from typing import Literal

from medsd.inference.prediction import NOT_TRAINED, Prediction, Said

Group = Literal["present", "uncertain", "absent"]
# In the order in which they are read, with their headings.
GROUPS: dict[Group, str] = {"present": "Called present", "uncertain": "Uncertain", "absent": "Called absent"}
NEAR = 1.5  # odds within this factor of the threshold's are just above or just below it
LEGEND = (
    f"Just above and just below its threshold: the odds are within a factor of {NEAR:g} of the threshold's. "
    "Uncertain: the model makes no call. Cases: the share of the nearest cases that have the finding; "
    "⚑ where that contradicts the call."
)
_NO_CALL = {
    "trained": "too little training data",
    "chosen": "too few validation images",
    "both": "both calls conform at {coverage:g} %",
    "neither": "unlike the validation images of either call",
}


def called_by(coverage: float | None) -> str:
    """Where the calls of a reading come from."""
    if coverage is None:
        return "Calls at the operating points of the model."
    return f"Conformal calls with a coverage of {coverage * 100:g} %."


def notice_words(prediction: Prediction) -> tuple[str, str]:
    """Heading and sentences of what must be read before the findings, or instead of them; "" twice for nothing."""
    if not prediction.refused:
        return ("Read with care", prediction.message) if prediction.message else ("", "")
    title = "Findings withheld" if prediction.reason == "out_of_distribution" else "Not read"
    return title, f"{prediction.message} No findings are given for this image."


def percent(probability: float) -> str:
    """A probability as a person reads it: whole percents, and never 0 % or 100 %."""
    if probability < 0.01:
        return "< 1 %"
    return "> 99 %" if probability > 0.99 else f"{probability * 100:.0f} %"


def group(said: Said) -> Group:
    """Under which heading a finding stands."""
    return "present" if said == "present" else "absent" if said == "absent" else "uncertain"


def grouped(prediction: Prediction) -> dict[Group, tuple[str, ...]]:
    """The findings under their headings, the most probable first; a heading without findings is left out."""
    found = {key: tuple(name for name in prediction.ranked if group(prediction.said(name)) == key) for key in GROUPS}
    return {key: names for key, names in found.items() if names}


def standing(probability: float, threshold: float) -> str:
    """Where a probability lies: above, just above, just below or below its threshold.

    >>> standing(0.34, 0.3), standing(0.6, 0.3)
    ('just above its threshold', 'above its threshold')
    """
    for_, against = probability * (1 - threshold), threshold * (1 - probability)
    near = "just " if max(for_, against) <= NEAR * min(for_, against) else ""
    return f"{near}{'above' if probability >= threshold else 'below'} its threshold"


def no_call(prediction: Prediction, name: str) -> str:
    """Why the model makes no call of a finding; "" where it makes one."""
    said = prediction.said(name)
    if said == NOT_TRAINED:
        return _NO_CALL["trained"]
    if said != "undecided":
        return ""
    if prediction.coverage is None:
        return _NO_CALL["chosen"]
    found = prediction.conformal_sets.get(name, "both")
    return _NO_CALL["neither" if found == "neither" else "both"].format(coverage=prediction.coverage * 100)


def reason(prediction: Prediction, name: str, threshold: float | None) -> str:
    """What stands beside the number of a finding: where it lies, or why there is no call; "" for a conformal call."""
    probability = prediction.probabilities.get(name)
    if prediction.coverage is None and probability is not None and threshold is not None:
        return standing(probability, threshold)
    return no_call(prediction, name)


def impression(prediction: Prediction, against: int = 0) -> str:
    """What a reading comes to, in one line; "" where it was refused.

    `against` is on how many findings the similar cases contradict it.

    ``2 of 14 findings called present: mass, nodule; 4 cannot be called (too little training data)``
    """
    if prediction.refused or not prediction.ranked:
        return ""
    findings, present = prediction.findings, grouped(prediction).get("present", ())
    parts = [f"{len(present) or 'None'} of {len(findings)} findings called present"]
    if present:
        parts[0] += f": {', '.join(map(findings.in_text, present))}"
    # One number for each reason; a dict keeps the order in which they are met.
    reasons = Counter(filter(None, (no_call(prediction, name) for name in prediction.ranked)))
    parts += [f"{count} cannot be called ({why})" for why, count in reasons.items()]
    if against:
        parts.append(f"similar cases disagree on {against}")
    return "; ".join(parts)

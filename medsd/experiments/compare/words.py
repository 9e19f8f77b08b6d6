"""Where the reference wins, ties and loses, in sentences that follow from the figures by rule.

«Wins» and «loses» need a paired test that stays below the level after correction; everything else is «not told
apart», which is no proof of equality.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medsd.experiments.compare.summary import MAIN

Summary = dict[str, Any]


def verdicts(summary: Summary, of_set: Summary) -> list[str]:
    """One sentence for each main metric, then one about intervals, one about test samples."""
    sentences = [_verdict(summary, of_set, metric) for metric in MAIN]
    return [*sentences, _tail_verdict(summary, of_set), _apart(summary, of_set), _samples(summary, of_set)]


def _verdict(summary: Summary, of_set: Summary, metric: str) -> str:
    titles, reference = summary["titles"], summary["settings"]["reference"]
    tests = of_set["tests"][metric]
    means = {loss: found["means"][metric]["mean"] for loss, found in of_set["losses"].items()}
    if any(mean is None for mean in means.values()):
        return f"{summary['metrics'][metric]}: too few test samples to tell."
    best = max(means, key=lambda loss: means[loss])
    parts = [
        f"{words} {_listed([titles[rival] for rival, test in tests.items() if test['verdict'] == verdict])}"
        for verdict, words in (("wins", "wins over"), ("ties", "is not told apart from"), ("loses", "loses to"))
        if any(test["verdict"] == verdict for test in tests.values())
    ]
    highest = f"the highest mean is that of {titles[best]} ({means[best]:.3f}"
    highest += ")" if best == reference else f"; {titles[reference]} {means[reference]:.3f})"
    return f"**{summary['metrics'][metric]}**: {titles[reference]} {'; '.join(parts)}; {highest}."


def _tail_verdict(summary: Summary, of_set: Summary) -> str:
    titles, tests = summary["titles"], of_set["tests"]
    parts = []
    for group in of_set["groups"]:
        of_group = tests[f"map_{group}"]
        won = [titles[rival] for rival, test in of_group.items() if test["verdict"] == "wins"]
        lost = [titles[rival] for rival, test in of_group.items() if test["verdict"] == "loses"]
        parts.append(f"{group}: wins over {_listed(won)}, loses to {_listed(lost)}")
    return f"**mAP by frequency of the finding**: {'; '.join(parts)}."


def _apart(summary: Summary, of_set: Summary) -> str:
    """Which rivals' nDCG intervals do not meet the reference's."""
    titles, reference = summary["titles"], summary["settings"]["reference"]
    own = of_set["losses"][reference]["means"]["ndcg"]
    above: list[str] = []
    below: list[str] = []
    meeting: list[str] = []
    for rival in of_set["tests"]["ndcg"]:
        other = of_set["losses"][rival]["means"]["ndcg"]
        place = above if own["low"] > other["high"] else below if own["high"] < other["low"] else meeting
        place.append(titles[rival])
    return (
        f"**Intervals over the seeds** (nDCG): {titles[reference]}'s lies wholly above that of {_listed(above)}, "
        f"wholly below that of {_listed(below)}, and meets that of {_listed(meeting)}."
    )


def _samples(summary: Summary, of_set: Summary) -> str:
    """Whether the lead would stand with other test samples."""
    titles, reference = summary["titles"], summary["settings"]["reference"]
    leads = of_set["over_test_samples"]["lead"]
    ahead = [titles[rival] for rival, lead in leads.items() if lead["low"] is not None and lead["low"] > 0]
    behind = [titles[rival] for rival, lead in leads.items() if lead["high"] is not None and lead["high"] < 0]
    return (
        f"**Intervals over the test samples** (nDCG, bootstrap): the difference leaves out 0 in favour of "
        f"{titles[reference]} against {_listed(ahead)}, and against it for {_listed(behind)}."
    )


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

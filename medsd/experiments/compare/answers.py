"""Questions of a comparison, answered from its figures by rule: nobody writes an answer by hand.

An arm is a loss that differs from the question's reference in one thing. All arms and sets of a question are one family
of tests for each metric, so that a question with many arms finds no effect by their number. In nDCG an effect must also
hold over the test samples: their bootstrap interval leaves 0 out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from medsd.experiments.compare.measured import ALL_METRICS
from medsd.experiments.compare.settings import CompareSettings, LossQuestion
from medsd.experiments.compare.summary import SetResult, Summary
from medsd.experiments.statistics import SeedMean, compare_pairs, patient_intervals
from medsd.strict import as_yaml

_WORDS = {"wins": "is higher", "loses": "is lower"}
WHOLE = "configs/recipes/nih14.yaml"  # trains whole networks


def answer(question: LossQuestion, results: list[SetResult], settings: CompareSettings) -> Summary:
    """The question with, for each metric, the paired tests of each arm on each set, and the sentences they lead to."""
    return {
        "ask": question.ask,
        "reference": question.reference,
        "answers": {metric: _of_metric(question, metric, results, settings) for metric in question.metrics},
    }


def _of_metric(question: LossQuestion, metric: str, results: list[SetResult], settings: CompareSettings) -> Summary:
    places = [(arm, result) for arm in question.arms for result in results]
    compared = compare_pairs(
        [(result.values(arm, metric), result.values(question.reference, metric)) for arm, result in places],
        settings.confidence,
    )
    tests: dict[str, Summary] = {arm: {} for arm in question.arms}
    for (arm, result), found in zip(places, compared, strict=True):
        over_samples = _over_samples(result, arm, question.reference, settings) if metric == "ndcg" else None
        is_sure = over_samples is None or (over_samples.low or 0) > 0 or (over_samples.high or 0) < 0
        tests[arm][result.data.name] = asdict(found) | {
            "over_samples": None if over_samples is None else asdict(over_samples),
            "verdict": found.verdict(1 - settings.confidence) if is_sure else "ties",
        }
    title, reference = ALL_METRICS[metric].format(k=settings.k), settings.title(question.reference)
    verdicts = [test["verdict"] for of_set in tests.values() for test in of_set.values()]
    return {
        "title": title,
        "tests": tests,
        "short": in_short(verdicts, title, reference),
        "said": [_sentence(settings.title(arm), tests[arm], settings.confidence) for arm in question.arms],
    }


def _over_samples(result: SetResult, arm: str, reference: str, settings: CompareSettings) -> SeedMean:
    """The difference of the two losses in nDCG, with its interval over the test patients."""
    lead = result.query_ndcg(arm) - result.query_ndcg(reference)
    counted = ~np.isnan(lead)
    patients = result.data.patients[result.data.test][counted]
    return patient_intervals(lead[counted, None], patients, settings.bootstrap, settings.confidence)[0]


def in_short(verdicts: list[str], title: str, reference: str) -> str:
    """The answer in one sentence."""
    number, higher, lower = len(verdicts), verdicts.count("wins"), verdicts.count("loses")
    if not higher + lower:
        return f"No effect was seen: {title} is told apart from that of {reference} in none of {number} comparisons."
    return (
        f"An effect was seen in {higher + lower} of {number} comparisons with {reference}: {title} is higher in "
        f"{higher}, lower in {lower}."
    )


def _sentence(arm: str, of_sets: Mapping[str, Any], confidence: float) -> str:
    """What one arm does: where it is higher, where lower, and how large an effect may be where none was seen."""
    parts = []
    for verdict, words in _WORDS.items():
        where = [f"{name} ({test['difference']['mean']:+.3f})" for name, test in of_sets.items()
                 if test["verdict"] == verdict]  # fmt: skip
        if where:
            parts.append(f"{words} on {listed(where)}")
    tied = {name: test["difference"] for name, test in of_sets.items() if test["verdict"] == "ties"}
    told = {name: each for name, each in tied.items() if each["mean"] == each["mean"]}  # not NaN
    if told:
        low, high = min(each["low"] for each in told.values()), max(each["high"] for each in told.values())
        parts.append(
            f"no effect seen on {listed(told)} ({100 * confidence:g} % intervals within {low:+.3f} to {high:+.3f})"
        )
    if len(told) < len(tied):
        parts.append(f"too few test samples on {listed(name for name in tied if name not in told)}")
    return f"**{arm}**: {'; '.join(parts)}."


def listed(names: Iterable[str]) -> str:
    """The names in words, "a, b and c"; none of them is an error."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def best_three(result: SetResult, settings: CompareSettings) -> list[str]:
    """The three losses with the highest mean nDCG, tuned alike; of losses with equal figures the first."""
    found: dict[tuple[float, ...], str] = {}
    for loss in settings.losses:
        if settings.variant(loss).temperature is None:
            found.setdefault(tuple(result.values(loss, "ndcg")), loss)
    return [found[values] for values in sorted(found, key=sum, reverse=True)[:3]]


def whole_network(result: SetResult, settings: CompareSettings) -> str:
    """The command that trains a whole network of radiographs with each of the best three, with what was chosen here."""
    arms = {loss: _recipe(loss, result, settings) for loss in best_three(result, settings)}
    given = {
        "arms": arms,
        "reference": next(iter(arms)),
        "seeds": list(settings.seeds),
        "name": f"{settings.name}-whole",
    }
    laid = " ".join(f"--set '{key}={json.dumps(value)}'" for key, value in given.items())
    return f"medsd compare {WHOLE} --set data.root=FOLDER {laid}"


def _recipe(loss: str, result: SetResult, settings: CompareSettings) -> list[str]:
    if loss == "bce":
        return ["training.finetune.sd_weight=0"]
    variant = settings.variant(loss)
    options = [f"loss.options.{key}={as_yaml(value)}" for key, value in variant.options.items()]
    return [f"loss.name={variant.loss}", f"loss.temperature={result.choices[loss].trial.temperature:g}", *options]

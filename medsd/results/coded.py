"""A result as coded values: what structured report, HL7 and FHIR say in the same codes and numbers."""

from typing import NamedTuple

from pydicom.sr.coding import Code

from medsd.cases.explain import RELATION_TITLES
from medsd.results.codes import CALLS, CODES, REPORT, SETS, private
from medsd.results.result import CaseResult, FindingResult, Result

_CASES = CODES["cases"]


class Item(NamedTuple):
    name: Code  # what is said
    value: float | Code
    unit: Code = REPORT["ratio"]  # of a number, in UCUM


def call_of(finding: FindingResult) -> Item:
    return Item(REPORT["call"], CALLS[finding.call])


def measurements(finding: FindingResult, result: Result) -> list[Item]:
    """The numbers of a finding: its probability, and what the call stands on."""
    told = {
        "probability": finding.probability,
        "operating point": finding.operating_point,
        "coverage": result.coverage if finding.probability is not None else None,
    }
    return [Item(REPORT[name], value) for name, value in told.items() if value is not None]


def conformal_set(finding: FindingResult) -> list[Item]:
    """The calls that conform, where the call is conformal."""
    found = finding.conformal_set
    return [] if found is None else [Item(REPORT["conformal set"], SETS[found])]


def refusal(result: Result) -> Item:
    return Item(REPORT["status"], private(result.prediction.reason or "refused"))


def case_items(case: CaseResult) -> list[Item]:
    """A similar case: likeness, relation, and the findings that are shared, extra and missing."""
    items = [Item(_CASES["similarity"], case.similarity)]
    if case.percentile is not None:
        items.append(Item(_CASES["percentile"], case.percentile, REPORT["percent"]))
    items.append(Item(_CASES["relation"], private(case.relation, RELATION_TITLES[case.relation])))
    return items + [Item(_CASES[part], code) for part in ("shared", "extra", "missing") for code in getattr(case, part)]


def algorithm_items(result: Result) -> list[tuple[Code, str]]:
    """Name, version and hash of the model, as TID 4019 of PS3.16 has them."""
    told = {"algorithm name": result.model, "algorithm version": result.version,
            "algorithm parameters": f"sha256 of model.onnx {result.model_sha256}"}  # fmt: skip
    return [(REPORT[name], text) for name, text in told.items()]


def notices(result: Result) -> list[str]:
    """What is to be read beside the findings: message, where the calls come from, that it is no diagnosis."""
    told = [result.message and result.lines()[0], "" if result.refused else result.calls, result.disclaimer]
    return [line for line in told if line]

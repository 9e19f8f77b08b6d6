"""What the core installs: nothing under the GPL, no version with a known vulnerability, each file with its hash."""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The LGPL counts, too: the core does without. GCC's exception frees whatever is linked with GCC's own libraries.
COPYLEFT = re.compile(r"GPL|General Public License|Affero", re.IGNORECASE)
EXCEPTION = re.compile(r"\S+ WITH GCC-exception-[\d.]+")
# Distribution → its last version with a published vulnerability that is known to us, and which.
VULNERABLE = {
    "gradio": ("6.15.2", "GHSA-j36p-7w88-g82j"),
    "mlflow-skinny": ("3.12.0", "CVE-2026-2635, CVE-2026-8147"),
    "monai": ("1.5.2", "GHSA-89gg-p5r5-q6r4, GHSA-rghg-q7wp-9767"),
    "onnx": ("1.20.1", "CVE-2026-27489, CVE-2026-28500, CVE-2026-34445"),
    "pillow": ("12.2.0", "fixed in 12.3.0; CVE-2026-40192 before 12.2"),
    "playwright": ("1.55.0", "CVE-2025-59288"),
    "pyarrow": ("23.0.0", "CVE-2026-25087"),
    "pydicom": ("3.0.1", "CVE-2026-32711"),
    "pytest": ("9.0.2", "CVE-2025-71176"),
    "python-multipart": ("0.0.26", "CVE-2026-42561"),
    "ray": ("2.54.1", "CVE-2026-32981"),
    "torch": ("2.12.0", "CVE-2025-3000, CVE-2026-24747"),
    "tqdm": ("4.66.2", "CVE-2024-34062"),
    "transformers": ("5.8.1", "CVE-2026-9856, CVE-2026-5241, CVE-2026-4372"),
}


def closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Every installed distribution that these requirements bring here, with the extras that they ask for."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    ahead = [(Requirement(line), "") for line in requirements]
    while ahead:
        requirement, asked = ahead.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": asked}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = distribution(name)
        for extra in {"", *requirement.extras} - {extra for of, extra in seen if of == name}:
            seen.add((name, extra))
            ahead += [(Requirement(line), extra) for line in found[name].requires or ()]
    return found


def licence(found: Distribution) -> str:
    """What a distribution's metadata say of its licence; of a long text in License, the first line."""
    told = found.metadata
    classifiers = [line for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    fields = [told.get("License-Expression") or "", *(told.get("License") or "").strip().splitlines()[:1], *classifiers]
    return "; ".join(filter(None, fields))


def is_copyleft(words: str) -> bool:
    return bool(COPYLEFT.search(EXCEPTION.sub("", words)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("GPL-3.0-or-later", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("MIT OR AGPL-3.0", True),
        ("LGPL-2.1-only", True),
        ("GPL V3.0", True),
        ("BSD-3-Clause AND GPL-3.0-only WITH GCC-exception-3.1", False),
        ("MPL-2.0", False),
    ],
)
def test_a_licence_is_known_by_its_words(words: str, expected: bool) -> None:
    assert is_copyleft(words) == expected


def test_nothing_in_the_core_is_under_the_gpl() -> None:
    core = closure(PROJECT["dependencies"])
    assert len(core) > 60 and "starlette" in core  # the walk goes beyond what is named
    told = {name: licence(found) for name, found in core.items()}
    assert not {name: words for name, words in told.items() if not words}
    assert not {name: words for name, words in told.items() if is_copyleft(words)}


def test_no_floor_admits_a_version_with_a_known_vulnerability() -> None:
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    admitted = {
        requirement.name: VULNERABLE[requirement.name]
        for requirement in map(Requirement, lines)
        if requirement.name in VULNERABLE and requirement.specifier.contains(VULNERABLE[requirement.name][0])
    }
    assert not admitted


def test_the_lock_holds_the_core_in_the_versions_of_the_constraints_each_with_a_hash() -> None:
    lines = (ROOT / ".ci" / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    pins = [canonicalize_name(line.partition("==")[0]) + "==" + line.partition("==")[2].split()[0] for line in lines]
    listed = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = {canonicalize_name(line.partition("==")[0]) + "==" + line.partition("==")[2] for line in listed}
    assert set(pins) <= constraints
    if (platform.machine(), sys.platform, sys.version_info[:2]) == ("x86_64", "linux", (3, 11)):
        assert {pin.partition("==")[0] for pin in pins} == set(closure(PROJECT["dependencies"]))

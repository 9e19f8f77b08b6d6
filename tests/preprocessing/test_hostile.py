"""Hostile files among good ones: each a row with a reason, the others as if they were not there."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest

from medsd.bundle.layout import Bundle
from medsd.dicom.gate import admit
from medsd.dicom.policy import REASONS, GatePolicy
from medsd.privacy import KeyedHasher
from medsd.scoring.batch import score
from medsd.scoring.request import ScoringRequest
from tests.mutants import Mutants, generated_films

GOOD, BAD = 40, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty films, and a refused mutant after every tenth."""
    place = tmp_path_factory.mktemp("hostile")
    films = generated_films()
    contents = list(films.values())
    for number in range(GOOD):
        (place / f"{number:03d}_good.dcm").write_bytes(contents[number % len(contents)])
    mutants = (mutant.content for mutant in map(Mutants(films, seed=11).__getitem__, itertools.count()))
    refused = (content for content in mutants if admit(content).status == "refused")
    for number, content in enumerate([_nested(films["jpegls"]), *itertools.islice(refused, BAD - 1)]):
        (place / f"{number * 10 + 9:03d}_mutant.dcm").write_bytes(content)
    return place


def _nested(content: bytes) -> bytes:
    """A film whose header nests more deeply than a parser goes."""
    at = content.rindex(b"\xe0\x7f\x10\x00")
    return content[:at] + b"\x40\0\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 30_000 + content[at:]


def _table(bundle: Bundle, inputs: list[Path], out: Path, hasher: KeyedHasher, workers: int) -> dict[str, str]:
    score(
        ScoringRequest(
            bundle, inputs, out, workers=workers, batch_size=8, hasher=hasher, policy=GatePolicy(max_seconds=30)
        )
    )
    return {Path(line.split(",")[0]).name: line for line in out.read_text().splitlines()[1:]}


@pytest.mark.parametrize("workers", [1, 2])
def test_hostile_files_among_good_ones_change_no_row_but_their_own(
    image_bundle: Bundle, folder: Path, tmp_path: Path, hasher: KeyedHasher, workers: int
):
    mixed = _table(image_bundle, [folder], tmp_path / "mixed.csv", hasher, workers)
    alone = _table(image_bundle, [folder / "*_good.dcm"], tmp_path / "alone.csv", hasher, workers)
    assert len(mixed) == GOOD + BAD
    assert {name: line for name, line in mixed.items() if name.endswith("_good.dcm")} == alone
    with (tmp_path / "mixed.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].endswith("_mutant.dcm")]
    assert [(row["status"], row["reason"] in REASONS) for row in rows] == [("refused", True)] * BAD

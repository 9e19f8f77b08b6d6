"""The card of a bundle that a run made: every number in it comes from the files that `medsd evaluate` wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsd.bundle.layout import Bundle
from medsd.card import CARD, PAGE, different_pages, write_card
from medsd.evaluation.distribution import AS_THEY_ARE, DISTRIBUTION, DistributionReport
from medsd.pipeline.folder import Run
from tests.card_numbers import unexplained_numbers


def test_every_number_of_a_trained_bundles_card_stands_in_its_json_files(finished: Run) -> None:
    text = (finished.bundle / CARD).read_text(encoding="utf-8")
    count, missing = unexplained_numbers(text, finished.bundle)
    assert count > 200 and missing == []
    for path in finished.folder.glob("evaluation*.json"):
        assert path.read_bytes() == (finished.bundle / path.name).read_bytes()


def test_the_card_is_made_again_from_the_bundle_alone_to_the_byte(finished: Run, tmp_path: Path) -> None:
    assert different_pages(Bundle.open(finished.bundle)) == []
    copy = tmp_path / "copy"
    shutil.copytree(finished.bundle, copy)
    write_card(copy, Bundle.open(copy).description)
    assert (copy / PAGE).read_bytes() == (finished.bundle / PAGE).read_bytes()


def test_the_check_for_unsuitable_films_is_measured_when_the_bundle_is_made(finished: Run) -> None:
    report = DistributionReport.read(finished.bundle / DISTRIBUTION)
    names = [group.name for group in report.groups]
    assert names[0] == AS_THEY_ARE and {"upside down", "blank"} <= set(names)
    assert all(group.images == report.images for group in report.groups)
    assert "### Unsuitable images" in (finished.bundle / CARD).read_text(encoding="utf-8")

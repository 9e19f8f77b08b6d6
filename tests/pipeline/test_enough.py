"""How many studies there are, said before the training; and what cannot be trained on, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.pipeline.enough import check_enough
from medsd.studies.manifest import Manifest, complete
from medsd.studies.rejected import Rejections

NIH14 = finding_set("nih14")


def _manifest(splits: list[str], effusion: list[float], rejected: Rejections | None = None) -> Manifest:
    names = [f"s{number}" for number in range(len(splits))]
    table = pd.DataFrame({"study": names, "patient": names, "path": names, "split": splits, "Effusion": effusion})
    return Manifest(complete(table, NIH14), NIH14, Path(), rejected or Rejections())


def test_positives_are_counted_and_too_few_are_warned_of_by_split(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    splits = ["train"] * 40 + ["validation"] * 8 + ["test"] * 30
    check_enough(_manifest(splits, [float(n % 2) for n in range(78)]), minimum_positives=10)
    assert "images in train/validation/test: 40/8/30" in caplog.text
    assert "positives in train/validation/test: Pleural effusion 20/4/15" in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned[0].startswith("no probability, as no training study is labelled for it: Atelectasis, ")
    assert warned[1:] == [
        "fewer than 10 positives or negatives in validation (no threshold, so that every call is undecided): "
        "Pleural effusion"
    ]


def test_a_bound_that_asks_for_next_to_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    splits = ["train"] * 40 + ["validation"] * 8 + ["test"] * 30
    for bound in (4, 5):
        check_enough(_manifest(splits, [float(n % 2) for n in range(78)]), minimum_positives=bound)
    assert caplog.text.count("figures and calls from fewer than 5 positives say nothing") == 1


@pytest.mark.parametrize("missing", ["train", "validation", "test"])
def test_a_split_without_studies_is_refused_with_what_the_table_says(missing: str) -> None:
    others = [split for split in ("train", "validation", "test") if split != missing]
    rejected = Rejections()
    rejected.splits.update(["fold 3"] * 7)
    for row in range(7):
        rejected.add(row + 1, None, "unknown_split")
    manifest = _manifest(others * 10, [float(n % 2) for n in range(20)], rejected)
    with pytest.raises(DataError) as caught:
        check_enough(manifest, minimum_positives=1)
    said = str(caught.value)
    assert said.startswith(f"no study is in {missing}; ") and f"{others[0]} has 10, {others[1]} has 10" in said
    assert "'fold 3' (7)" in said and "unknown_split 7" in said and "val, valid, dev" in said


def test_words_of_a_column_of_splits_that_may_be_names_are_not_told() -> None:
    rejected = Rejections()
    rejected.splits.update(f"Jane Doe {number}" for number in range(9))
    assert rejected.unknown_splits == "9 other words"
    rejected.splits.clear()
    rejected.splits.update(["Jane Doe", "Jane Doe", *["fold 3"] * 4])
    assert rejected.unknown_splits == "2 other words"


def test_studies_without_any_label_may_be_prepared(caplog: pytest.LogCaptureFixture) -> None:
    check_enough(_manifest(["train", "test"], [np.nan, np.nan]), minimum_positives=1)
    assert "cannot be trained on" in caplog.text


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_labels_from_which_nothing_can_be_learned_are_refused(value: float) -> None:
    splits = ["train", "train", "validation", "test"]
    with pytest.raises(DataError, match="nothing to learn"):
        check_enough(_manifest(splits, [value, value, 1.0, 0.0]), minimum_positives=1)

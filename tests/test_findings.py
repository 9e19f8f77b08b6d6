"""Finding sets: order, encoding, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.findings import FINDING_SETS, FindingSet, finding_set


@pytest.mark.parametrize("vocabulary", FINDING_SETS.values(), ids=lambda v: v.key)
def test_names_are_unique_and_encoding_is_undone_by_decoding(vocabulary: FindingSet) -> None:
    assert len(set(vocabulary)) == len(vocabulary) == len(vocabulary.findings)
    for names in (vocabulary.names[:1], vocabulary.names[1:4], ()):
        assert vocabulary.decode(vocabulary.encode(names)) == tuple(names)


def test_nih14_is_in_the_order_of_the_data_set() -> None:
    assert list(finding_set("nih14")) == sorted(finding_set("nih14"))


def test_no_finding_is_all_absent_and_unknown_names_are_refused() -> None:
    assert not finding_set("nih14").encode(["No Finding"]).any()
    with pytest.raises(DataError, match="'Fracture' is no finding of nih14"):
        finding_set("nih14").encode(["Fracture"])
    with pytest.raises(DataError, match="no finding set 'nih15'"):
        finding_set("nih15")


def test_unknown_labels_are_not_decoded_as_present() -> None:
    row = np.full(len(finding_set("nih14")), np.nan)
    row[3] = 1
    assert finding_set("nih14").decode(row) == ("Edema",)

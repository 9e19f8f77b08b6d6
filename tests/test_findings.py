"""Finding sets: order, encoding, refusals, and what may be concluded from one vocabulary to another."""

from __future__ import annotations

import numpy as np
import pytest

from medsd.errors import DataError
from medsd.findings import (
    _MEANINGS,
    _WIDER,
    FINDING_SETS,
    FindingSet,
    _concepts,
    finding_set,
    map_labels,
    resolve_uncertain,
)


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


def _mapped(from_key: str, to_key: str, **values: float) -> dict[str, float]:
    source, target = finding_set(from_key), finding_set(to_key)
    row = np.zeros((1, len(source)))
    for name, value in values.items():
        row[0, source.names.index(name.replace("__", " "))] = value
    return dict(zip(target, map_labels(row, source, target)[0].tolist(), strict=True))


def test_labels_keep_their_meaning_under_another_spelling() -> None:
    mapped = _mapped("nih14", "chexpert14", Effusion=1)
    assert mapped["Pleural Effusion"] == 1 and mapped["Cardiomegaly"] == 0
    assert _mapped("padchest", "nih14", infiltrates=1)["Infiltration"] == 1
    assert _mapped("chexpert14", "nih14", Pleural__Effusion=np.nan, Edema=1)["Edema"] == 1


def test_what_a_set_never_labelled_is_unknown_not_absent() -> None:
    mapped = _mapped("nih14", "chexpert14")
    assert np.isnan(mapped["Fracture"]) and np.isnan(mapped["Support Devices"]) and np.isnan(mapped["Lung Opacity"])
    assert np.isnan(_mapped("chexpert14", "nih14")["Hernia"])


def test_a_wider_finding_follows_from_a_narrower_one_but_never_the_reverse() -> None:
    assert _mapped("nih14", "chexpert14", Mass=1)["Lung Opacity"] == 1
    assert _mapped("vindr", "chexpert14", Consolidation=1)["Lung Opacity"] == 1
    present = _mapped("chexpert14", "nih14", Lung__Opacity=1, Lung__Lesion=1)
    assert np.isnan(present["Infiltration"]) and np.isnan(present["Nodule"]) and present["Consolidation"] == 0


def test_the_absence_of_a_wider_finding_is_the_absence_of_its_kinds() -> None:
    absent = _mapped("chexpert14", "nih14")
    assert absent["Nodule"] == absent["Mass"] == absent["Infiltration"] == absent["Pleural_Thickening"] == 0
    nodule = _mapped("vindr", "nih14", **{"Nodule/Mass": 1})
    assert np.isnan(nodule["Nodule"]) and np.isnan(nodule["Mass"])


@pytest.mark.parametrize("target", FINDING_SETS.values(), ids=lambda v: v.key)
@pytest.mark.parametrize("source", FINDING_SETS.values(), ids=lambda v: v.key)
def test_unknown_labels_stay_unknown_and_shapes_fit(source: FindingSet, target: FindingSet) -> None:
    mapped = map_labels(np.full((3, len(source)), np.nan), source, target)
    assert mapped.shape == (3, len(target)) and mapped.dtype == np.float32 and np.isnan(mapped).all()
    again = map_labels(np.eye(len(source)), source, source)
    np.testing.assert_array_equal(again, np.eye(len(source)))


def test_every_row_of_the_mapping_tables_names_something_that_exists() -> None:
    concepts = {concept for vocabulary in FINDING_SETS.values() for concept in _concepts(vocabulary)}
    for key, meanings in _MEANINGS.items():
        assert set(meanings) <= set(finding_set(key)) and set(meanings.values()) <= concepts
    assert set(_WIDER) | set(_WIDER.values()) <= concepts


def test_uncertain_labels_become_what_is_asked() -> None:
    row = [1.0, 0.0, -1.0, np.nan]
    np.testing.assert_array_equal(resolve_uncertain(row), [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(resolve_uncertain(row, "present"), [1, 0, 1, np.nan])
    np.testing.assert_array_equal(resolve_uncertain(row, "absent"), [1, 0, 0, np.nan])


def test_labels_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit nih14, which has 14 findings"):
        map_labels(np.zeros((2, 3)), finding_set("nih14"), finding_set("vindr"))

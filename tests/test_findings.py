"""Finding sets: order, encoding, refusals, and what may be concluded from one vocabulary to another."""

import re

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsd.errors import DataError
from medsd.findings import (
    FINDING_SETS,
    FindingSet,
    finding_set,
    map_labels,
    resolve_uncertain,
)
from medsd.findings.mapping import ancestors, concepts
from medsd.findings.vocabulary import LITERAL, MEANINGS, WIDER


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
    known = {concept for vocabulary in FINDING_SETS.values() for concept in concepts(vocabulary)}
    for key, meanings in MEANINGS.items():
        assert set(meanings) <= set(finding_set(key)) and set(meanings.values()) <= known
    assert set(WIDER) | set(WIDER.values()) <= known and set(FINDING_SETS) >= LITERAL


@pytest.mark.parametrize("vocabulary", FINDING_SETS.values(), ids=lambda v: v.key)
def test_no_two_labels_of_a_set_mean_the_same_and_no_concept_is_wider_than_itself(vocabulary: FindingSet) -> None:
    named = concepts(vocabulary)
    assert len(set(named)) == len(named)
    assert all(concept not in ancestors(concept) for concept in named)


def test_a_code_is_the_same_wherever_the_finding_stands_and_has_the_form_of_its_system() -> None:
    codes: dict[str, set[tuple[str, str]]] = {}
    for vocabulary in FINDING_SETS.values():
        for concept, finding in zip(concepts(vocabulary), vocabulary.findings, strict=True):
            codes.setdefault(concept, set()).add((finding.snomed, finding.radlex))
            assert not finding.snomed or (finding.snomed.isdigit() and _verhoeff(finding.snomed))
            assert re.fullmatch(r"(RID\d+)?", finding.radlex)
    assert {concept: found for concept, found in codes.items() if len(found) > 1} == {}


def _verhoeff(code: str) -> bool:
    """Whether the check digit of a SNOMED CT identifier is right (Verhoeff's dihedral check)."""
    permuted = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for place, digit in enumerate(map(int, reversed(code))):
        for _ in range(place % 8):
            digit = permuted[digit]
        check = _dihedral(check, digit)
    return check == 0


def _dihedral(a: int, b: int) -> int:
    """The product of two symmetries of the pentagon: 0 to 4 turn it, 5 to 9 mirror it."""
    turned = (a % 5 - b % 5 if a >= 5 else a % 5 + b % 5) % 5
    return turned + 5 * ((a >= 5) ^ (b >= 5))


def test_uncertain_labels_become_what_is_asked() -> None:
    row = [1.0, 0.0, -1.0, np.nan]
    np.testing.assert_array_equal(resolve_uncertain(row), [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(resolve_uncertain(row, "present"), [1, 0, 1, np.nan])
    np.testing.assert_array_equal(resolve_uncertain(row, "absent"), [1, 0, 0, np.nan])


def test_labels_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit nih14, which has 14 findings"):
        map_labels(np.zeros((2, 3)), finding_set("nih14"), finding_set("vindr"))


VALUES = st.sampled_from([0.0, 1.0, np.nan])
PAIRS = st.tuples(st.sampled_from(sorted(FINDING_SETS)), st.sampled_from(sorted(FINDING_SETS)))


@st.composite
def _labelled(draw: st.DrawFn) -> tuple[FindingSet, FindingSet, np.ndarray]:
    """Two sets and labels of the first."""
    source, target = (finding_set(key) for key in draw(PAIRS))
    return source, target, draw(arrays.arrays(np.float32, (4, len(source)), elements=VALUES))


@settings(max_examples=150)
@given(_labelled())
def test_no_label_is_made_up_between_any_two_sets(case: tuple[FindingSet, FindingSet, np.ndarray]) -> None:
    source, target, labels = case
    columns = dict(zip(concepts(source), labels.T, strict=True))
    for concept, mapped in zip(concepts(target), map_labels(labels, source, target).T, strict=True):
        kinds = [column for name, column in columns.items() if name == concept or concept in ancestors(name)]
        wider = [columns[name] for name in (concept, *ancestors(concept)) if name in columns]
        present = np.any([column == 1 for column in kinds], axis=0) if kinds else np.zeros(4, dtype=bool)
        absent = np.any([column == 0 for column in wider], axis=0) if wider else np.zeros(4, dtype=bool)
        assert not (mapped == 1)[~present].any() and not (mapped == 0)[~absent].any()
        if not kinds and not wider:
            assert np.isnan(mapped).all()  # never labelled: unknown, not absent


@settings(max_examples=60)
@given(_labelled())
def test_each_row_is_mapped_by_itself(case: tuple[FindingSet, FindingSet, np.ndarray]) -> None:
    source, target, labels = case
    mapped = map_labels(labels, source, target)
    np.testing.assert_array_equal(map_labels(labels[[2, 0]], source, target), mapped[[2, 0]])


def test_a_mesh_opacity_is_the_word_of_the_report_and_not_the_sum_of_its_kinds() -> None:
    assert _mapped("nih14", "mesh", Consolidation=1)["Consolidation"] == 1
    assert np.isnan(_mapped("nih14", "mesh", Consolidation=1)["Opacity/lung"])
    assert _mapped("mesh", "chexpert14", Consolidation=1)["Lung Opacity"] == 1
    assert np.isnan(_mapped("mesh", "chexpert14")["Lung Lesion"])  # no word of opacity does not exclude a lesion


def test_mesh_headings_become_the_findings_of_the_other_sets() -> None:
    mapped = _mapped("mesh", "nih14", **{"Pulmonary__Atelectasis": 1, "Thickening/pleura": 1, "Hernia,__Hiatal": 1})
    assert {name for name, value in mapped.items() if value == 1} == {"Atelectasis", "Pleural_Thickening", "Hernia"}
    assert not any(np.isnan(value) for value in mapped.values())  # MeSH has all fourteen
    assert _mapped("mesh", "chexpert14", **{"Tube,__Inserted": 1})["Support Devices"] == 1

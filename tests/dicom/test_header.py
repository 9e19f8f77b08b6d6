"""What a header says: view, body part and species, from elements, codes and descriptions."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.sr.codedict import Collection

from medsd.dicom.header import read_header
from medsd.dicom.policy import GatePolicy
from medsd.dicom.terms import HUMAN_CODES, body_parts_in, region_of_code, view_in, view_of_code


def dataset(**elements: object) -> Dataset:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def coded(value: str = "", meaning: str = "") -> list[Dataset]:
    return [dataset(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)]


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "ANTEROPOSTERIOR"}, "AP"),
        ({"ViewPosition": "RL"}, "LATERAL"),
        ({"ViewPosition": "LLD"}, "OTHER"),
        ({"ViewPosition": "PA", "SeriesDescription": "LAT"}, "PA"),
        ({"ViewCodeSequence": coded("272479007")}, "PA"),
        ({"ViewCodeSequence": coded("R-10206")}, "AP"),
        ({"ViewCodeSequence": coded("399173006")}, "LATERAL"),
        ({"ViewCodeSequence": coded("R-102C1")}, "OTHER"),
        ({"ViewCodeSequence": coded("399033003")}, "FRONTAL"),
        ({"ViewCodeSequence": coded("99X", "postero-anterior")}, "PA"),
        ({"ViewCodeSequence": coded("R-10236"), "PatientOrientation": ["L", "F"]}, "LATERAL"),
        ({"SeriesDescription": "W Chest Lat."}, "LATERAL"),
        ({"ProtocolName": "THORAX PA"}, "PA"),
        ({"AcquisitionDeviceProcessingDescription": "CHEST, LATERAL"}, "LATERAL"),
        ({"SeriesDescription": "LATERAL DECUBITUS"}, "OTHER"),
        ({"SeriesDescription": "PA AND LATERAL"}, ""),
        ({"StudyDescription": "CHEST LATERAL"}, ""),
        ({"SeriesDescription": "RL"}, ""),
        ({"PatientOrientation": ["L", "F"]}, "FRONTAL"),
        ({"PatientOrientation": ["R", "F"]}, "FRONTAL"),
        ({"PatientOrientation": ["A", "F"]}, "LATERAL"),
        ({"PatientOrientation": ["P", "FL"]}, "LATERAL"),
        ({"PatientOrientation": ["A", "R"]}, ""),
        ({"PatientOrientation": "L"}, ""),
        ({}, ""),
    ],
)
def test_the_nearest_element_tells_the_view(elements: dict[str, object], view: str) -> None:
    assert read_header(dataset(**elements)).view == view


def test_the_view_codes_are_those_of_the_standard() -> None:
    """PS3.16 CID 4010, as pydicom carries it; each known meaning must come to the view that its words say."""
    views = Collection("CID4010")
    codes = [code for code in views.concepts.values() if view_of_code(code.value)]
    assert len(codes) >= 18
    for code in codes:
        assert view_of_code(code.value) == view_in(code.meaning.upper()), code.meaning


@pytest.mark.parametrize(
    ("elements", "body_part"),
    [
        ({"BodyPartExamined": "CHEST"}, "CHEST"),
        ({"BodyPartExamined": "PORT CHEST"}, "CHEST"),
        ({"BodyPartExamined": "TORAX"}, "THORAX"),
        ({"BodyPartExamined": "DOE JANE"}, "OTHER"),
        ({"BodyPartExamined": "HAND", "SeriesDescription": "CHEST"}, "HAND"),
        ({"AnatomicRegionSequence": coded("816094009")}, "CHEST"),
        ({"AnatomicRegionSequence": coded("T-D3000")}, "CHEST"),
        ({"AnatomicRegionSequence": coded("89546000", "Skull")}, "SKULL"),
        ({"AnatomicRegionSequence": coded("99X", "Knee")}, "KNEE"),
        ({"SeriesDescription": "THORAX pa"}, "THORAX"),
        ({"StudyDescription": "HAND LEFT"}, "HAND"),
        ({"StudyDescription": "RX POUMON FACE"}, "LUNG"),
        ({"StudyDescription": "FACE"}, ""),
        ({"StudyDescription": "No Finding"}, ""),
        ({}, ""),
    ],
)
def test_the_nearest_element_tells_the_body_part(elements: dict[str, object], body_part: str) -> None:
    assert read_header(dataset(**elements)).body_part == body_part


def test_the_region_codes_are_those_of_the_standard() -> None:
    regions = Collection("CID4009")
    codes = [code for code in regions.concepts.values() if region_of_code(code.value)]
    assert len(codes) >= 10
    for code in codes:
        words = set(body_parts_in(code.meaning.upper()).split())
        assert words & set(region_of_code(code.value).split()) or "SPINE" in region_of_code(code.value), code.meaning


@pytest.mark.parametrize(
    ("elements", "element"),
    [
        ({"PatientSpeciesDescription": "Canis lupus familiaris"}, "(0010,2201)"),
        ({"PatientSpeciesDescription": "Homo sapiens"}, ""),
        ({"PatientSpeciesDescription": "HUMAN"}, ""),
        ({"PatientSpeciesCodeSequence": coded("448169003", "Felis catus")}, "(0010,2202)"),
        ({"PatientSpeciesCodeSequence": coded("337915000", "Homo sapiens")}, ""),
        ({"PatientSpeciesCodeSequence": []}, ""),
        ({"AnatomicalOrientationType": "QUADRUPED"}, "(0010,2210)"),
        ({"AnatomicalOrientationType": "BIPED"}, ""),
        ({"PatientBreedDescription": "Beagle"}, "(0010,2292)"),
        ({"SeriesDescription": "Feline thorax"}, "a description"),
        ({}, ""),
    ],
)
def test_an_animal_is_told_by_its_header(elements: dict[str, object], element: str) -> None:
    found = read_header(dataset(**elements)).animal
    assert found.startswith(element)
    assert bool(found) == bool(element)


def test_man_has_the_code_that_the_standard_gives_him() -> None:
    assert Collection("CID7454").HomoSapiens.value in HUMAN_CODES


def test_every_body_part_of_the_policy_is_a_word_that_headers_are_searched_for() -> None:
    assert all(body_parts_in(word) == word for word in GatePolicy().body_parts)

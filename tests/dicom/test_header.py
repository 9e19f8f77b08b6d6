"""What a header says: view, body part and species, from elements, codes and descriptions."""

import io
import re

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import Collection

from medsd.dicom.header import clinical_concerns, costly_concerns, read_header
from medsd.dicom.policy import GatePolicy
from medsd.dicom.terms import body_parts_in, term_of_code, view_in, words_listed
from tests.conftest import dx_dataset, file_bytes

# Code strings of real files hold what the standard does not allow there.
pytestmark = pytest.mark.filterwarnings("ignore:.*for VR CS")


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


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (
            "LATERAL",
            "PERFIL|PROFIL|PROFILO|seitlich|Seitenaufnahme|LATERALE|latéral gauche|ZIJDELINGS|BOCZNE|BOČNÍ|BOČNA",
        ),
        (
            "LATERAL",
            "YAN|SIDOBILD|SIVUKUVA|OLDALIRÁNYÚ|БОКОВАЯ|бічна|侧位|左侧位|側面|측면|جانبي|ΠΛΑΓΙΑ|NGHIÊNG|L-L|L.LAT",
        ),
        ("LATERAL", "THORAX SEITLICH|Tórax perfil|RTG KLATKI BOCZNE|胸部側面|L LAT|Latero-laterale|LATERALAUFNAHME"),
        (
            "OTHER",
            "SCHRÄG|oblique|OBLÍCUA|obliqua|SKOŚNE|ŠIKMÁ|КОСАЯ|斜位|左侧卧位|DÉCUBITUS|DECÚBITO LATERAL|lordótica",
        ),
        ("PA", "P.A.|P/A|pósteroanterior|postero-antérieur|POSTERIOR ANTERIOR|TYLNO-PRZEDNIE|ZADOPŘEDNÍ|后前位|D.V."),
        ("PA", "заднепередняя|THORAX FACE PA|Postero Anteriore"),
        (
            "AP",
            "A.P.|anteroposterior|Antero Posteriore|PRZEDNIO-TYLNE|PŘEDOZADNÍ|前后位|переднезадняя|AP DECÚBITO SUPINO",
        ),
        ("FRONTAL", "FACE|FRENTE|frontale|прямая|正位|正面|정면"),
        (
            "",
            "FACE ET PROFIL|FRENTE Y PERFIL|PA/LAT|PA + LATERAL|прямая и боковая|正侧位|BILATERAL|LATERALITY L|UNKNOWN",
        ),
    ],
)
def test_a_view_is_known_in_many_languages(view: str, words: str) -> None:
    found = {word: view_in(word.upper()) for word in words.split("|")}
    assert found == dict.fromkeys(words.split("|"), view)


@pytest.mark.parametrize("keyword", ["ViewPosition", "SeriesDescription", "ProtocolName", "BodyPartExamined"])
def test_a_lateral_in_another_language_is_known_in_every_element(keyword: str) -> None:
    assert read_header(dataset(**{keyword: "TÓRAX PERFIL"})).view == "LATERAL"
    assert read_header(dataset(ViewCodeSequence=coded("99X", "Profil gauche"))).view == "LATERAL"


def test_words_that_are_too_short_mean_no_view_in_a_description() -> None:
    assert read_header(dataset(SeriesDescription="LEFT SIDE BOK YAN")).view == ""


def test_the_element_that_tells_view_and_body_part_is_named() -> None:
    header = read_header(dataset(ViewPosition="LL", AnatomicRegionSequence=coded("99X", "Knee")))
    found = " ".join(item.message for item in clinical_concerns(header, GatePolicy()))
    assert "is lateral by (0018,5101) View Position" in found
    assert "'KNEE' by (0008,2218) Anatomic Region Sequence" in found


def test_the_view_codes_are_those_of_the_standard() -> None:
    """PS3.16 CID 4010, as pydicom carries it; each known meaning must come to the view that its words say."""
    views = Collection("CID4010")
    codes = [code for code in views.concepts.values() if term_of_code(code.value, "view_codes")]
    assert len(codes) >= 18
    for code in codes:
        assert term_of_code(code.value, "view_codes") == view_in(code.meaning.upper()), code.meaning


@pytest.mark.parametrize(
    ("elements", "body_part"),
    [
        ({"BodyPartExamined": "CHEST"}, "CHEST"),
        ({"BodyPartExamined": "PORT CHEST"}, "CHEST"),
        ({"BodyPartExamined": "TORAX"}, "THORAX"),
        ({"BodyPartExamined": "DOE JANE"}, "OTHER"),
        ({"BodyPartExamined": "816094009"}, "CHEST"),
        ({"BodyPartExamined": "UNKNOWN", "AnatomicRegionSequence": coded("89546000", "Skull")}, "SKULL"),
        ({"BodyPartExamined": "OTHER", "StudyDescription": "HAND LEFT"}, "HAND"),
        ({"BodyPartExamined": "THORACIC SPINE"}, "TSPINE SPINE"),
        ({"StudyDescription": "COLONNE THORACIQUE"}, "TSPINE"),
        ({"StudyDescription": "MANCHESTER"}, ""),
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


@pytest.mark.parametrize(
    ("body_part", "words"),
    [
        ("THORAX", "TÓRAX|TÒRAX|Tórax|TORACE|TORAKS|torácico|Röntgenthorax|THX|RXTORAX|THORAXPA"),
        ("CHEST", "PECHO|BRUSTKORB|Brust|POITRINE|PETTO|PEITO|BORSTKAS|BRÖSTKORG|BRYSTKASSE|HRUDNÍK|KLATKA PIERSIOWA"),
        ("CHEST", "GÖĞÜS|MELLKAS|RINTAKEHÄ|ГРУДНАЯ КЛЕТКА|ОГК|胸部|胸|흉부|صدر|חזה|ΘΩΡΑΚΑΣ|NGỰC|CHESTPA|CHEST_2V|CXR"),
        ("LUNG", "PULMÃO|PULMONES|POUMONS|POLMONI|PŁUCA|PLÍCE|AKCİĞER|TÜDŐ|KEUHKOT|ЛЁГКИЕ|肺|폐|LUNGENÜBERSICHT"),
        ("TSPINE", "BWS|Brustwirbelsäule|ГРУДНОЙ ОТДЕЛ ПОЗВОНОЧНИКА|胸椎|COLUMNA TORACICA|RACHIS THORACIQUE"),
        ("", "UNKNOWN|OTHER|N/A|unbekannt|DESCONOCIDO|不明|未知|НЕИЗВЕСТНО"),
        ("OTHER", "DOE JANE|ÄÖÜ|17|RX-0815"),
    ],
)
def test_a_body_part_is_known_in_many_languages(body_part: str, words: str) -> None:
    found = {word: read_header(dataset(BodyPartExamined=word)).body_part for word in words.split("|")}
    # A plural that the standard has too stands for itself.
    assert {word: part.replace("LUNGS", "LUNG") for word, part in found.items()} == dict.fromkeys(found, body_part)


@pytest.mark.parametrize(
    ("declared", "encoding", "word"),
    [
        ("ISO_IR 192", "utf-8", "TÓRAX"),
        ("", "utf-8", "TÓRAX"),
        ("ISO_IR 100", "utf-8", "TÓRAX"),
        ("ISO_IR 100", "latin-1", "TÓRAX"),
        ("ISO_IR 144", "iso8859-5", "ГРУДЬ"),
        ("GB18030", "gb18030", "胸部"),
        ("\\ISO 2022 IR 87", "iso2022_jp", "胸部"),
    ],
)
@pytest.mark.parametrize("keyword", ["BodyPartExamined", "StudyDescription"])
def test_the_bytes_of_a_code_string_are_read_in_their_character_set(
    declared: str, encoding: str, word: str, keyword: str
) -> None:
    """Code strings are ASCII by the standard, so pydicom leaves other bytes as they are."""
    ds = dx_dataset(np.zeros((64, 64), np.uint8), SpecificCharacterSet=declared, BodyPartExamined=None)
    content = file_bytes(ds)
    tag, vr = (b"\x18\0\x15\0", b"CS") if keyword == "BodyPartExamined" else (b"\x08\0\x30\x10", b"LO")
    value = word.encode(encoding)
    value += b" " * (len(value) % 2)
    at = content.index(b"\x10\0\x10\0PN" if keyword == "StudyDescription" else b"\x18\0\x01\x51", 200)
    changed = content[:at] + tag + vr + len(value).to_bytes(2, "little") + value + content[at:]
    assert read_header(dcmread(io.BytesIO(changed))).body_part in ("THORAX", "CHEST")


@pytest.mark.parametrize("named", ["RX-0815", "rx 0815", "Żebra dolne", "DOLNE"])
def test_a_policy_may_name_a_body_part_that_no_table_knows(named: str) -> None:
    accepts = GatePolicy(body_parts=(named,))
    local = "RX-0815" if "0815" in named else "ŻEBRA DOLNE"
    for elements in ({"BodyPartExamined": local}, {"AnatomicRegionSequence": coded("99X", local)}):
        header = read_header(dataset(**elements))
        assert clinical_concerns(header, accepts) == []
        (refused,) = clinical_concerns(header, GatePolicy())
        assert refused.reason == "body_part" and "gate.body_parts" in refused.message
        assert not {"0815", "DOLNE"} & set(re.findall(r"\w+", refused.message))
    assert clinical_concerns(read_header(dataset(BodyPartExamined="SKULL")), accepts)


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", "DR", "XR", "RX", "dx"])
def test_what_makers_write_for_a_radiograph_is_accepted(modality: str) -> None:
    header = read_header(dataset(Modality=modality, Rows=99, Columns=99, PhotometricInterpretation="MONOCHROME2"))
    assert costly_concerns(header, GatePolicy()) == []


def test_the_region_codes_are_those_of_the_standard() -> None:
    regions = Collection("CID4009")
    regions = [(term_of_code(code.value, "region_codes"), code.meaning) for code in regions.concepts.values()]
    known = [(region, meaning) for region, meaning in regions if region]
    assert len(known) >= 10
    for region, meaning in known:
        assert set(body_parts_in(meaning.upper()).split()) & set(region.split()) or "SPINE" in region, meaning


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
    assert Collection("CID7454").HomoSapiens.value in words_listed("human_codes")


def test_every_body_part_of_the_policy_is_a_word_that_headers_are_searched_for() -> None:
    assert all(body_parts_in(word) == word for word in GatePolicy().body_parts)

"""Key image, presentation state, PDF and key object: valid by dciodvfy, in the patient's own study, nothing in logs."""

from __future__ import annotations

import io
import logging
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medsd.errors import DataError
from medsd.inference.predict import Predictor
from medsd.results.objects import KINDS, Kind, drawn, forms_of, objects
from medsd.results.result import Result
from medsd.results.source import SERIES, Source
from tests.conftest import file_bytes
from tests.results.conftest import Check
from tests.results.test_sr import COPIED, reread
from tests.results.varied import WHEN, Reading, radiograph, similar_case

OTHERS: tuple[Kind, ...] = ("key-image", "gsps", "pdf", "kos")


@pytest.fixture(scope="module")
def made(fifty: list[Reading], predictor: Predictor, fused: Predictor) -> list[dict[Kind, Dataset]]:
    """The other objects of each of the fifty."""
    bundles = {each.bundle.model_sha256: each.bundle for each in (predictor, fused)}
    return [
        objects(replace(each.result, cases=()), bundles[each.result.model_sha256], each.source, OTHERS)
        for each in fifty
    ]


def _made(predictor: Predictor, content: bytes, kinds: tuple[Kind, ...]) -> dict[Kind, Dataset]:
    bundle = predictor.bundle
    return objects(Result.of(predictor(content), bundle, when=WHEN), bundle, Source.read(content), kinds)


def test_every_object_of_the_fifty_has_no_errors(made: list[dict[Kind, Dataset]], dciodvfy: Check) -> None:
    found = {(number, kind): dciodvfy(one) for number, some in enumerate(made) for kind, one in some.items()}
    assert {where: errors for where, errors in found.items() if errors} == {}


def test_planted_faults_are_caught(made: list[dict[Kind, Dataset]], dciodvfy: Check) -> None:
    faults = {"key-image": "ConversionType", "gsps": "PresentationLUTShape", "pdf": "BurnedInAnnotation"}
    for kind, keyword in faults.items():
        document = deepcopy(made[0][kind])  # type: ignore[index]
        del document[keyword]
        assert dciodvfy(document), kind


def test_which_objects_there_are(fifty: list[Reading], made: list[dict[Kind, Dataset]]) -> None:
    for reading, some in zip(fifty, made, strict=True):
        wanted = {"pdf", "kos"} if reading.result.refused else {"pdf", "key-image"}
        assert set(some) == wanted | ({"gsps"} if reading.result.present else set())
    assert {kind for some in made for kind in some} == set(OTHERS)


def test_patient_and_study_are_those_of_the_image(fifty: list[Reading], made: list[dict[Kind, Dataset]]) -> None:
    for reading, some in zip(fifty, made, strict=True):
        image = pydicom.dcmread(io.BytesIO(reading.content))
        for kind, one in some.items():
            document = reread(one)
            for keyword in COPIED:
                pair = (document.get(keyword), image.get(keyword))
                assert pair[0] == pair[1] or not any(pair), (kind, keyword)
            assert document.SeriesNumber == SERIES[kind]
            assert document.SeriesInstanceUID != image.SeriesInstanceUID
            assert reading.source.bare.SOPInstanceUID in document.to_json()


def test_the_presentation_state_outlines_each_finding_in_a_layer_of_its_own(fifty, made) -> None:  # type: ignore[no-untyped-def]
    state, present = reread(made[0]["gsps"]), fifty[0].result.present
    *outlines, notice = state.GraphicAnnotationSequence
    assert len({layer.GraphicLayer for layer in state.GraphicLayerSequence}) == len(present) + 1
    for annotation, finding in zip(outlines, present, strict=True):
        [outline], [words] = annotation.GraphicObjectSequence, annotation.TextObjectSequence
        assert np.allclose(np.reshape(outline.GraphicData, (-1, 2)), finding.region)
        assert words.UnformattedTextValue == finding.sentence()
    assert "Not for diagnosis" in notice.TextObjectSequence[0].UnformattedTextValue
    assert state.PresentationLUTShape == "IDENTITY"
    assert state.SoftcopyVOILUTSequence[0].WindowCenter == 2048


def test_an_inverted_image_stays_inverted_and_an_odd_header_has_no_presentation_state(
    predictor: Predictor, chest, caplog
) -> None:  # type: ignore[no-untyped-def]
    inverted = file_bytes(
        radiograph(1 - chest, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    )
    state = _made(predictor, inverted, ("gsps",))["gsps"]
    assert state.PresentationLUTShape == "INVERSE"
    odd = file_bytes(radiograph(chest, WindowWidth=None))
    assert _made(predictor, odd, ("gsps",)) == {}
    assert "no presentation state" in caplog.text and "Phantom" not in caplog.text


def test_the_key_image_shows_the_image_and_what_is_said(fifty, made, chest) -> None:  # type: ignore[no-untyped-def]
    capture = reread(made[0]["key-image"])
    assert (capture.pixel_array == drawn(fifty[0].result)).all()
    height, width = chest.shape
    left = (capture.Columns - width) // 2
    grey, shown = capture.pixel_array[:height, left : left + width].mean(axis=2), fifty[0].result.prediction.image
    assert np.corrcoef(grey.ravel(), shown.ravel())[0, 1] > 0.7
    assert (capture.pixel_array[height:] > 200).any()  # letters
    other = replace(fifty[0].result.prediction, message="Another message.")
    said = drawn(replace(fifty[0].result, prediction=other))
    assert said is not None and (said.shape != drawn(fifty[0].result).shape or (said != drawn(fifty[0].result)).any())


def test_what_was_lossy_stays_lossy(predictor: Predictor, chest) -> None:  # type: ignore[no-untyped-def]
    content = file_bytes(radiograph(chest, LossyImageCompression="01", LossyImageCompressionRatio="12"))
    capture = _made(predictor, content, ("key-image",))["key-image"]
    assert (capture.LossyImageCompression, capture.LossyImageCompressionRatio) == ("01", 12)
    again = file_bytes(radiograph(chest, LossyImageCompression="01", LossyImageCompressionMethod=["ISO_10918_1"] * 2))
    capture = _made(predictor, again, ("key-image",))["key-image"]
    assert list(capture.LossyImageCompressionMethod) == ["ISO_10918_1"] * 2


def test_the_pdf_is_that_of_the_app(made: list[dict[Kind, Dataset]]) -> None:
    wrapped = reread(made[0]["pdf"])
    document = wrapped.EncapsulatedDocument[: wrapped.EncapsulatedDocumentLength]
    assert document.startswith(b"%PDF-") and document.rstrip().endswith(b"%%EOF")
    assert wrapped.MIMETypeOfEncapsulatedDocument == "application/pdf"


def test_a_refused_image_is_a_quality_issue_with_its_reason(fifty, made) -> None:  # type: ignore[no-untyped-def]
    refused = next(number for number, each in enumerate(fifty) if each.result.refused)
    document = reread(made[refused]["kos"])
    assert document.ConceptNameCodeSequence[0].CodeValue == "113010"
    modifier = document.ContentSequence[0]  # CID 7011 has "No image", which a flat one is
    assert modifier.ConceptNameCodeSequence[0].CodeValue == "113011"
    assert modifier.ConceptCodeSequence[0].CodeValue == "111213" and fifty[refused].result.prediction.reason == "flat"
    assert fifty[refused].result.message[:40] in document.to_json()


def test_no_object_names_a_case_and_no_log_names_an_image(fifty, predictor, caplog) -> None:  # type: ignore[no-untyped-def]
    caplog.set_level(logging.DEBUG)
    reading, cases = fifty[0], [similar_case(predictor.bundle)]
    result = Result.of(reading.result.prediction, predictor.bundle, cases, when=WHEN)
    some = objects(result, predictor.bundle, reading.source, KINDS, cases)
    assert set(some) == set(KINDS) - {"kos"}
    for kind, one in some.items():
        stream = io.BytesIO()
        one.save_as(stream, enforce_file_format=True)
        assert b"CANARY" not in stream.getvalue(), kind
    for secret in ("Phantom", "PH-0042", str(reading.source.bare.SOPInstanceUID)):
        assert secret not in caplog.text


def test_times_are_in_the_time_zone_that_the_object_names(fifty: list[Reading], chest) -> None:  # type: ignore[no-untyped-def]
    late = replace(fifty[0].result, when=datetime(2026, 5, 4, 22, 30, tzinfo=UTC))
    source = Source.of(radiograph(chest, TimezoneOffsetFromUTC="+0530"))
    told = source.arguments(late, "sr")
    assert f"{told['content_date']} {told['content_time']}" == "2026-05-05 04:00:00"


@pytest.mark.parametrize("text", ["", "sr,png", ","])
def test_kinds_are_checked(text: str) -> None:
    with pytest.raises(DataError, match="there are sr, sr3d"):
        forms_of(text)
    assert forms_of(" SR, kos,sr") == ("sr", "kos")

"""A reading as JSON: complete, in order of probability, and without anybody's identity."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medsd.bundle.layout import Bundle
from medsd.inference.predict import Predictor
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher
from medsd.results.record import reading_record
from medsd.studies.phantom import generate_study, write_dicom
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", fused=True)


@pytest.fixture(scope="module")
def prediction(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    path = tmp_path_factory.mktemp("image") / "Canary_Carla.dcm"
    write_dicom(generate_study(3, seed=1, size=200), path)
    predictor = Predictor(bundle, hasher=KeyedHasher(b"sixteen bytes or more"))
    return predictor(path, "Carla Canary is short of breath")


def test_every_finding_is_there_most_probable_first(bundle: Bundle, prediction: Prediction) -> None:
    record = reading_record(prediction, bundle, when="2026-01-01T00:00:00+00:00")
    values = [finding["probability"] for finding in record["findings"]]
    assert values == sorted(values, reverse=True) and len(values) == len(bundle.findings)
    assert record["model_sha256"] == bundle.model_sha256 and record["read"].startswith("2026")
    assert "no medical device" in record["disclaimer"] and "synthetic" in record["disclaimer"]


def test_nobody_is_named(bundle: Bundle, prediction: Prediction) -> None:
    text = json.dumps(reading_record(prediction, bundle), allow_nan=False)
    assert "Canary" not in text and "Carla" not in text and "breath" not in text
    assert prediction.patient_key and prediction.patient_key not in text


def test_a_refused_study_has_its_reason_and_no_findings(bundle: Bundle) -> None:
    refused = Predictor(bundle)(np.zeros((4, 4), np.float32))
    record = reading_record(refused, bundle)
    assert refused.refused and record["findings"] == [] and record["message"] == refused.message

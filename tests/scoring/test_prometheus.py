from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medsd.bundle.layout import Bundle
from medsd.errors import DataError
from medsd.scoring.batch import score
from medsd.scoring.prometheus import ScoringGauges
from medsd.scoring.request import ScoringRequest

OF = {"model": "tiny 1", "provider": "CPUExecutionProvider"}


def _samples(text: str) -> dict[str, float]:
    """Values by name and labels, as Prometheus' own parser reads them."""
    return {
        sample.name.removeprefix("medsd_score_")
        + "".join(f" {sample.labels[name]}" for name in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_finished_batch_has_told_its_rows(image_bundle: Bundle, films: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MEDSD_KEY", "a key for tests alone")
    score(ScoringRequest(image_bundle, [films], tmp_path / "out.csv", metrics=tmp_path / "medsd.prom"))
    found = _samples((tmp_path / "medsd.prom").read_text())
    told = {"inputs": 8, "inputs_remaining": 0, "inputs_reused": 0, "remaining_seconds": 0, "complete": 1}
    assert told.items() <= found.items()
    assert (found["rows_total  scored"], found["rows_total not_dicom refused"]) == (7, 1)
    assert found["inputs_per_second"] > 0
    assert found["info tiny 1 CPUExecutionProvider"] == 1
    assert "film_" not in (tmp_path / "medsd.prom").read_text()


def test_the_port_answers_on_loopback_alone_and_is_closed_afterwards():
    with ScoringGauges(10, 2, port=0, **OF) as metrics:
        metrics.advance([("scored", ""), ("refused", "view")])
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics") as answer:
            found = _samples(answer.read().decode())
        address = metrics._server.server_address[0]
    assert (found["inputs_remaining"], found["rows_total view refused"], found["complete"]) == (6, 1, 0)
    assert address == "127.0.0.1"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", metrics.port), timeout=5):
        pass


def test_a_taken_port_and_a_file_that_cannot_be_written_are_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DataError, match=f"port {port} for the metrics: Address already in use"):
            ScoringGauges(1, 0, port=port, **OF)
    with pytest.raises(DataError, match=r"gone/m\.prom: cannot be written \(No such file or directory\)"):
        ScoringGauges(1, 0, file=tmp_path / "gone" / "m.prom", **OF)


def test_a_disk_that_fills_up_under_the_metrics_does_not_end_the_batch(tmp_path: Path, monkeypatch):
    with ScoringGauges(2, 0, file=tmp_path / "m.prom", **OF) as metrics:
        monkeypatch.setattr(metrics, "_file", tmp_path / "gone" / "m.prom")
        metrics.complete()
    assert _samples((tmp_path / "m.prom").read_text())["complete"] == 0


def test_nothing_is_loaded_where_no_metrics_are_wanted():
    with ScoringGauges(1, 0, **OF) as metrics:
        metrics.advance([("scored", "")])
        metrics.complete()
    assert not hasattr(metrics, "_registry")

"""Trainings recorded in MLflow: what is sent, how a run goes on, and that nothing goes elsewhere."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medsd.errors import SettingsError
from medsd.pipeline.folder import Run, public_settings
from medsd.pipeline.run import fingerprint_of, run_steps
from medsd.pipeline.tracking import Tracker, local_store, tracked
from medsd.settings import Settings, load_settings
from medsd.training.engine import EndedEarly
from tests.runs import PHANTOM, small_settings

mlflow = pytest.importorskip("mlflow", reason="medsd[mlflow] is not installed")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite file for all tests: its tables take seconds to make."""
    return local_store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def settings(tmp_path: Path, store: str) -> Settings:
    return small_settings(tmp_path, f"training.mlflow={store}")


@pytest.fixture
def client(store: str) -> Any:
    return mlflow.MlflowClient(tracking_uri=store)


def stage(run: Run, *losses: float, name: str = "finetune") -> Any:
    """A stage after as many epochs."""
    return SimpleNamespace(name=name, folder=run.folder, history=[{"loss": value} for value in losses])


def run_id(run: Run) -> str:
    return str(json.loads((run.folder / "mlflow.json").read_text())["run_id"])


def losses(client: Any, run: Run, key: str = "finetune/loss") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id(run), key)]


def test_a_run_records_its_settings_and_every_epoch(settings: Settings, client: Any, store: str) -> None:
    run = run_steps(settings, "finetune")
    recorded = client.get_run(run_id(run))
    assert recorded.info.status == "FINISHED" and recorded.info.run_name == "phantom"
    history = json.loads((run.folder / "history.json").read_text())
    for name in ("pretrain", "finetune"):
        expected = [(epoch, figures["loss"]) for epoch, figures in enumerate(history[name]["epochs"])]
        assert losses(client, run, f"{name}/loss") == expected
    assert "finetune/validation_loss" in recorded.data.metrics
    assert recorded.data.params["training.finetune.batch_size"] == "8"
    assert not any(str(run.folder.parent.parent) in value for value in recorded.data.params.values())
    assert "mlflow.user" not in recorded.data.tags and not Path("mlruns").exists()


def test_an_interrupted_run_goes_on_in_the_same_run_of_mlflow(settings: Settings, client: Any) -> None:
    run = Run(settings)
    first = Tracker(run, str(settings.training.mlflow))
    first.record(stage(run, 0.9))
    first.record(stage(run, 0.9, 0.8))
    first.close("KILLED")
    assert client.get_run(run_id(run)).info.status == "KILLED"
    before, second = run_id(run), Tracker(run, str(settings.training.mlflow))
    second.record(stage(run, 0.9, 0.8, 0.7))
    second.close("FINISHED")
    assert run_id(run) == before and client.get_run(before).info.status == "FINISHED"
    assert losses(client, run) == [(0, 0.9), (1, 0.8), (2, 0.7)]


def test_a_training_begun_anew_is_another_run(settings: Settings, client: Any) -> None:
    run = Run(settings)
    for _ in range(2):
        tracker = Tracker(run, str(settings.training.mlflow))
        tracker.record(stage(run, 0.9))
        first = run_id(run)
        tracker.record(stage(run, 0.9, 0.8))
        tracker.close("FINISHED")
        assert run_id(run) == first and losses(client, run) == [(0, 0.9), (1, 0.8)]
    runs = client.search_runs([client.get_experiment_by_name("medsd").experiment_id])
    assert len([each for each in runs if each.data.metrics.get("finetune/loss") == 0.8]) >= 2


def test_a_store_that_fails_does_not_end_the_training_and_gets_what_it_missed(
    settings: Settings, client: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tracker = Run(settings), Tracker(Run(settings), str(settings.training.mlflow))
    tracker.record(stage(run, 0.9))

    def away(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("away")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(tracker._client, "log_batch", away)
        tracker.record(stage(run, 0.9, 0.8))
    assert "finetune: MLflow cannot be reached" in caplog.text
    tracker.record(stage(run, 0.9, 0.8, 0.7))
    assert losses(client, run) == [(0, 0.9), (1, 0.8), (2, 0.7)]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (EndedEarly(), "KILLED"), (ValueError(), "FAILED")]
)
def test_how_a_run_ended_is_said(error: BaseException, status: str, settings: Settings, client: Any) -> None:
    from medsd.training.engine import _watches

    run = Run(settings)
    with pytest.raises(type(error)), tracked(run):
        _watches.get()[-1](stage(run, 0.5))
        raise error
    assert client.get_run(run_id(run)).info.status == status and _watches.get() == ()


@pytest.mark.parametrize("uri", ["runs/mlflow", "http://127.0.0.1:9", "sqlite:///FILE/mlruns.db", "nosuch://x"])
def test_a_store_that_cannot_be_used_is_said_in_one_line_before_training(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").touch()
    settings = small_settings(tmp_path, f"training.mlflow={uri.replace('FILE', str(tmp_path / 'file'))}")
    with pytest.raises(SettingsError, match=r"^training\.mlflow: .*; .*$"):
        run_steps(settings, "prepare")


def test_mlflow_is_told_not_to_report_its_use_before_it_is_imported() -> None:
    from mlflow.telemetry.client import get_telemetry_client

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and get_telemetry_client() is None


def test_where_curves_go_changes_no_fingerprint_and_is_not_published(settings: Settings) -> None:
    plain = load_settings(PHANTOM)
    elsewhere = load_settings(PHANTOM, ["training.mlflow=https://user:secret@server"])
    assert fingerprint_of(plain, "index") == fingerprint_of(elsewhere, "index")
    assert public_settings(plain) == public_settings(elsewhere) and "secret" not in json.dumps(
        public_settings(elsewhere)
    )
    merged = public_settings(load_settings(PHANTOM.with_name("merge.yaml")))
    assert not any("root" in source for source in merged["data"]["sources"]) and "output" not in merged

"""MLflow beside TensorBoard, where `training.mlflow` asks for it; by default in a SQLite file in the run's own folder.

One run of medsd is one run of MLflow, however often it is interrupted. MONAI's MLFlowHandler is not used: it resumes a
run by its name, which two people may share, and prefers the environment's server to that of the settings.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsd.errors import DependencyError, SettingsError
from medsd.files import write_json
from medsd.pipeline.folder import Run, public_settings
from medsd.training.engine import EndedEarly, Stage, watched

log = logging.getLogger(__name__)

_PARAMS_AT_A_TIME, _LONGEST_PARAM = 100, 500  # what every version of a server takes
# MLflow's own would let a server that is away hold the training for minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def tracked(run: Run) -> Iterator[None]:
    """Record every stage that trains in here, where the settings want it; errors as `Tracker`."""
    wanted = run.settings.training.mlflow
    if wanted is False:
        yield
        return
    tracker = Tracker(run, local_store(run.folder) if wanted is True else wanted)
    status = "FAILED"
    try:
        with watched(tracker.record):
            yield
        status = "FINISHED"
    except (KeyboardInterrupt, EndedEarly):
        status = "KILLED"
        raise
    finally:
        tracker.close(status)


def local_store(folder: Path) -> str:
    """The URI of the SQLite file in `folder`; MLflow keeps no runs in plain folders any more."""
    return f"sqlite:///{folder.resolve() / 'mlruns.db'}"


class Tracker:
    """Records one run; the id of MLflow's run is kept in mlflow.json.

    Where the store fails later on, the training goes on, and what is missing is sent next time.

    Raises:
        SettingsError: the tracking store at `uri` cannot be reached or used.
        DependencyError: MLflow, or what it needs for this store, is not installed.
    """

    def __init__(self, run: Run, uri: str) -> None:
        if "://" not in uri and not uri.startswith("databricks"):
            raise SettingsError(f"training.mlflow: '{uri}' is no URI; use true, sqlite:///FILE, or https://SERVER")
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"training.mlflow needs {error.name}; install it with: pip install 'medsd[mlflow]', or set it to false"
            ) from None
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self._run, self._failures = run, (MlflowException, SQLAlchemyError, OSError)
        self._id, self._logged = "", dict[str, int]()
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._find_experiment(uri)
        except (*self._failures, ImportError, ValueError) as error:
            raise SettingsError(
                f"training.mlflow: the tracking store cannot be used ({type(error).__name__}); "
                "correct its URI, start the server, or set training.mlflow=false"
            ) from None

    def record(self, stage: Stage) -> None:
        """Send the epochs of `stage` that are not there yet; a `Watch`."""
        from mlflow.entities import Metric

        name = "/".join((*stage.folder.relative_to(self._run.folder).parts, stage.name))
        with self._going_on(stage.name, "training goes on, what is missing is sent after the next epoch"):
            start, now = self._begin(name, len(stage.history)), int(time.time() * 1000)
            metrics = [
                Metric(f"{name}/{figure}", value, now, epoch)
                for epoch, figures in enumerate(stage.history[start:], start)
                for figure, value in figures.items()
                if math.isfinite(value)
            ]
            self._client.log_batch(self._id, metrics)
            self._logged[name] = len(stage.history)

    def close(self, status: str) -> None:
        """Record how the run ended: FINISHED, FAILED or KILLED."""
        if self._id:
            with self._going_on(self._run.settings.name, "its run stays marked as running"):
                self._client.set_terminated(self._id, status)

    @contextmanager
    def _going_on(self, what: str, how: str) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            log.warning("%s: MLflow cannot be reached (%s); %s", what, type(error).__name__, how)

    def _begin(self, stage: str, epochs: int) -> int:
        """Open MLflow's run and count the stage's epochs in it; where it has too many (discarded), begin a new run."""
        self._id = self._id or self._reopened() or self._new_run()
        if stage not in self._logged:
            steps = [metric.step for metric in self._client.get_metric_history(self._id, f"{stage}/loss")]
            self._logged[stage] = max(steps, default=-1) + 1
        if self._logged[stage] >= epochs:
            self._client.set_terminated(self._id, "KILLED")
            self._id, self._logged = self._new_run(), {stage: 0}
        return self._logged[stage]

    def _reopened(self) -> str:
        """The run that an earlier session began, or nothing."""
        from mlflow.exceptions import MlflowException

        try:
            known = str(json.loads((self._run.folder / "mlflow.json").read_text(encoding="utf-8"))["run_id"])
            self._client.update_run(known, status="RUNNING")
        except (OSError, ValueError, KeyError):
            return ""
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return ""
        return known

    def _new_run(self) -> str:
        from mlflow.entities import Param

        name = self._run.settings.name
        made = str(self._client.create_run(self._experiment, run_name=name).info.run_id)
        params = [Param(key, value) for key, value in _flat(public_settings(self._run.settings))]
        for start in range(0, len(params), _PARAMS_AT_A_TIME):
            self._client.log_batch(made, params=params[start : start + _PARAMS_AT_A_TIME])
        write_json(self._run.folder / "mlflow.json", {"run_id": made})
        return made

    def _find_experiment(self, uri: str) -> str:
        """MLflow's group of runs: medsd, or what the environment's MLFLOW_EXPERIMENT_NAME says."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "medsd"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Else MLflow would put a folder for files, of which there are none, into the working directory.
        place = Path(uri.removeprefix("sqlite:///")).with_suffix("").as_uri() if uri.startswith("sqlite:////") else None
        return str(self._client.create_experiment(name, artifact_location=place))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as text."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text[:_LONGEST_PARAM]

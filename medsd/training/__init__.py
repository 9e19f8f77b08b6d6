"""Pretraining with the SD loss, fine-tuning, and the run that resumes."""

import os

# MONAI imports MLflow where it is installed, and MLflow reports its use to its makers unless it is told not to first.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

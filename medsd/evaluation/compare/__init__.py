"""`medsd compare`: losses side by side under equal conditions. Start at `medsd.evaluation.compare.run.compare`."""

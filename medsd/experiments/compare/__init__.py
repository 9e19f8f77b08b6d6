"""`medsd compare`: losses side by side under equal conditions. Start at `medsd.experiments.compare.run.compare`."""

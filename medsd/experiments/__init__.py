"""Trainings side by side: losses, recipes, searches for hyper-parameters."""

"""Honest measurement: metrics, intervals, calibration, retrieval."""

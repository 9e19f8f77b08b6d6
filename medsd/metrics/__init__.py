"""Figures from arrays: discrimination, calibration, retrieval, intervals and tests."""

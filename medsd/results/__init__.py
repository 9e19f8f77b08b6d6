"""Predictions as tables and documents."""

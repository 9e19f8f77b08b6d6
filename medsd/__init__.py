"""Multi-label reading of chest radiographs with clinical notes; see README.md and `medsd.cli`."""

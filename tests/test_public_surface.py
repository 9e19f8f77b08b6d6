from __future__ import annotations

import subprocess
import sys

import pytest

import medsd


def test_every_public_name_exists_and_is_listed():
    for name in medsd.__all__:
        assert getattr(medsd, name) is not None
        assert name in dir(medsd)


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="module 'medsd' has no attribute 'Predicter'; it has Bundle, CaseIndex"):
        _ = medsd.Predicter


def test_import_medsd_loads_nothing_else():
    script = (
        "import sys; before = set(sys.modules); import medsd; new = set(sys.modules) - before; "
        "print(sorted(name for name in new if name.split('.')[0] not in sys.stdlib_module_names))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "['medsd', 'medsd.errors', 'medsd.telemetry']"


def test_a_predictor_needs_no_training_library():
    script = (
        "import sys, medsd; medsd.Predictor; import medsd.scoring.batch; "
        "print([name for name in ('torch', 'monai', 'transformers', 'sklearn') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"

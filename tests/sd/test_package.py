"""What `medsd.sd` exports, and the examples in its docstrings."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import medsd.sd

MODULES = sorted(module.name for module in pkgutil.iter_modules(medsd.sd.__path__, "medsd.sd."))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(name: str) -> None:
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", medsd.sd.__all__)
def test_every_exported_name_is_there_and_documented(name: str) -> None:
    assert getattr(medsd.sd, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TripletLoss'"):
        medsd.sd.TripletLoss  # noqa: B018

"""Silence while strangers' files are read, for pydicom's child loggers too, and only inside."""

import logging
import warnings

import pytest
from pydicom import config

from medsd.dicom.quiet import quiet


def _speak() -> None:
    logging.getLogger("pydicom.pixels.decoders.base").error("could not decode")
    warnings.warn("Invalid value for VR PN", stacklevel=1)


def test_nothing_of_pydicom_is_heard_inside_and_everything_after(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet(), quiet():
            _speak()
        assert not caplog.records and not heard and capfd.readouterr().err == ""
        _speak()
    assert [record.message for record in caplog.records] == ["could not decode"] and len(heard) == 1


def test_what_pydicom_tells_of_every_element_is_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    import pydicom

    pydicom.config.debug(True)
    try:
        with quiet():
            logging.getLogger("pydicom").debug("(0010,0010) PN Canary^Carla")
        assert capfd.readouterr().err == ""
        logging.getLogger("pydicom").debug("afterwards")
        assert "afterwards" in capfd.readouterr().err
    finally:
        pydicom.config.debug(False)


def test_values_are_not_validated_while_quiet() -> None:
    """Of a header with 10,000 bad values each would be a warning that no one sees."""
    before = config.settings.reading_validation_mode
    with quiet(), quiet():
        assert config.settings.reading_validation_mode == config.IGNORE
    assert config.settings.reading_validation_mode == before

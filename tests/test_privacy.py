"""Keyed hashes and the log filter."""

import hashlib
import hmac
import logging
import stat
import sys
import time
import warnings
from pathlib import Path

import pytest

from medsd import privacy
from medsd.errors import SettingsError
from medsd.privacy import (
    IdentityFilter,
    KeyedHasher,
    install_log_filter,
    public_hasher,
    register_identities,
    scrub_note,
    spellings,
)

KEY = b"sixteen bytes or more"


def test_keys_are_hmac_sha256_in_16_digits_with_a_domain_each() -> None:
    hasher = KeyedHasher(KEY)
    expected = hmac.new(KEY, b"medsd/study\x001.2.3", hashlib.sha256).hexdigest()[:16]
    assert hasher.study_key("1.2.3") == expected
    assert hasher.patient_key("1.2.3") != expected
    assert KeyedHasher(KEY + b"!").study_key("1.2.3") != expected


def test_a_public_bundle_adds_keys_and_changes_none() -> None:
    hasher, public = KeyedHasher(KEY, public="nih14"), public_hasher("nih14")
    assert hasher.study_key("1.2.3") == KeyedHasher(KEY).study_key("1.2.3") != public.study_key("1.2.3")
    assert hasher.study_keys("1.2.3") == (hasher.study_key("1.2.3"), public.study_key("1.2.3"))
    assert hasher.patient_keys("7") == (hasher.patient_key("7"), public.patient_key("7"))
    assert KeyedHasher(KEY).study_keys("1.2.3") == (hasher.study_key("1.2.3"),)


def test_padding_of_dicom_values_does_not_matter_and_nobody_stays_nobody() -> None:
    hasher = KeyedHasher(KEY)
    assert hasher.study_key("1.2.3\0") == hasher.study_key(" 1.2.3 ")
    assert hasher.patient_key("  ") == ""


def test_a_short_key_is_refused_and_a_key_is_never_shown() -> None:
    with pytest.raises(SettingsError, match="at least 16"):
        KeyedHasher(b"short")
    assert "sixteen" not in repr(KeyedHasher(KEY))


def test_the_environment_variable_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDSD_KEY", KEY.decode())
    assert KeyedHasher.from_environment(tmp_path).study_key("1") == KeyedHasher(KEY).study_key("1")
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_is_made_once_and_only_for_its_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDSD_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    first = KeyedHasher.from_environment().patient_key("7")
    path = tmp_path / "medsd" / "key"
    assert [item.name for item in path.parent.iterdir()] == ["key"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyedHasher.from_environment().patient_key("7") == first
    assert KeyedHasher.from_environment(tmp_path / "elsewhere").patient_key("7") != first


def test_a_key_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDSD_KEY", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="MEDSD_KEY"):
        KeyedHasher.from_environment(tmp_path / "file")


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("reading Doe^Jane now", "reading [redacted] now"),
        ("PatientName='Müller^Änne^^Dr'", "PatientName='[redacted]'"),
        ("id MRN-77 and mrn-77x", "id [redacted] and mrn-77x"),
        ("born 19500102.", "born [redacted]."),
        ("Mrs CANARY was here", "Mrs [redacted] was here"),
        ("2 ^ 3 and 5 findings", "2 ^ 3 and 5 findings"),
    ],
)
def test_registered_values_and_person_names_are_redacted(line: str, left: str) -> None:
    identities = IdentityFilter()
    identities.register(["Canary^Bird", "MRN-77", "19500102", "F"])
    assert identities.redact(line) == left


def test_only_the_latest_values_are_kept() -> None:
    identities = IdentityFilter()
    identities.register(f"patient-{number}" for number in range(5000))
    assert identities.redact("patient-1") == "patient-1"
    assert identities.redact("patient-4999") == "[redacted]"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = logging.getLogRecordFactory()
    for module, name in ((warnings, "formatwarning"), (sys, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    monkeypatch.setattr(privacy, "_installed", False)
    install_log_filter()
    install_log_filter()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.usefixtures("installed")
def test_every_logger_is_redacted_with_arguments_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    register_identities(["CANARY-0815"])
    try:
        raise RuntimeError("cannot find CANARY-0815")
    except RuntimeError:
        logging.getLogger("somebody.elses").exception("no %s for %s", "image", "Doe^Jane")
    assert "no image for [redacted]" in caplog.text
    assert "CANARY" not in caplog.text
    assert "cannot find [redacted]" in caplog.text


@pytest.mark.usefixtures("installed")
def test_a_wrong_format_string_still_gives_a_line(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("medsd").warning("%d films", "two")
    assert "films" in caplog.text


@pytest.mark.usefixtures("installed")
def test_warnings_and_last_tracebacks_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    register_identities(["CANARY-0816"])
    line = warnings.formatwarning("no value CANARY-0816", UserWarning, "file.py", 1)
    assert "no value [redacted]" in line
    error = ValueError("of CANARY-0816")
    sys.excepthook(ValueError, error, None)
    assert capsys.readouterr().err == "ValueError: of [redacted]\n"


def test_an_identity_is_known_in_all_its_spellings() -> None:
    assert spellings("Doe^Jane=山田^花子") == ["doe^jane=山田^花子", "doe", "jane", "山田", "花子"]
    assert {"00471", "471"} <= set(spellings("00471"))
    dates = ("1947-02-03", "03.02.1947", "3.2.1947", "02/03/1947", "3 february 1947", "february 3, 1947", "3 feb 1947")
    assert {*dates} <= set(spellings("19470203"))
    assert spellings("19479999") == ["19479999"] and spellings("F") == []
    assert spellings("A" * 64) == spellings("A\u00b4\u00b4") == []  # compared as "a"
    assert spellings("Bae") == ["bae"]


@pytest.mark.parametrize(
    ("note", "left"),
    [
        ("Jane Doe, born 3.2.1947: cough. DOE is well.", "___ ___, born ___: cough. ___ is well."),
        ("花子さん: cough", "___さん: cough"),
        ("MRN 471, seen by Dr. Smith on 3 May 2020", "MRN ___, seen by ___ on ___"),
        ("Mrs Miller and Prof. van Dyk; Name: Anna Lee, aged 61", "___ and Prof. van Dyk; ___, aged 61"),
        ("call +49 6421 77419, a.b@example.org, ID: A1234, acc 99887766", "call ___, ___, ___, ___"),
        ("61-year-old, BP 130/80, SpO2 88 %, T 37.2-38.9, 1.5/2.5/3 cm, CABG 2019", None),
        ("Patient: short of breath. Case 3. 20-30 pack years; 24 Fr tube.", None),
    ],
)
def test_what_identifies_is_scrubbed_from_a_note_and_what_is_clinical_stays(note: str, left: str | None) -> None:
    assert scrub_note(note, ["Doe^Jane=山田^花子", "00471", "19470203"]) == (note if left is None else left)


_SPELLINGS = (
    "Canary\u00adson",
    "Cana\u200bryson",
    "CANARYSON",
    "Canary-\nson",
    "Canary\u00ad\nson",
    "\uff23anaryson",
    "can\u00e1ryson",
    "cana\u0301ryson",
    "O\u2019Fi\u0301scher",
    "O'\ufb01scher",
    "Mueller-Luedenscheidt",
    "Mu\u0308ller-\nLu\u0308denscheidt",
    "MÜLLER-\nLÜDENSCHEIDT",
    "Muller Ludenscheidt",
    "Müller\u2011Lüdenscheidt",
    "Strauss",
    "STRAUẞ",
)


@pytest.mark.parametrize("name", _SPELLINGS)
def test_a_name_is_scrubbed_in_any_spelling(name: str) -> None:
    known = ["Canaryson^Celiandra", "O'FISCHER", "Müller-Lüdenscheidt", "Strauß"]
    assert scrub_note(f"seen {name}, coughs", known) == "seen ___, coughs"
    assert scrub_note(f"{name}'s cough", known) == "___'s cough"


@pytest.mark.parametrize("known", ["MUELLER", "Müller", "Mu\u0308ller", "MULLER"])
def test_the_spelling_in_the_header_does_not_matter_either(known: str) -> None:
    identities = IdentityFilter()
    identities.register([known])
    for name in ("Müller", "Mueller", "Mul\u00adler"):
        assert scrub_note(f"seen {name}.", [known]) == "seen ___."
        assert identities.redact(f"no file for {name}.") == "no file for [redacted]."


def test_one_word_of_a_name_of_several_is_scrubbed_and_so_is_one_beside_an_underscore() -> None:
    known = ["Van der Hoffmann^Anna Maria", "Fitz^Aoife"]
    assert scrub_note("Hoff\u00admann and maria, file Fitz_Aoife", known) == "___ and ___, file " + 7 * "_"
    assert scrub_note("van and der stay", known) == "van and der stay"


def test_names_that_overlap_leave_no_rest() -> None:
    assert scrub_note("anna maria lee coughs", ["Anna Maria", "Maria Lee"]) == "___ coughs"


@pytest.mark.parametrize("piece", ["A", "1-", "1 ", "Mr ", "Name: ", "a.b", "A^", "a^^", "11 ", "id ", "+1", "@"])
def test_a_note_made_to_be_slow_is_not(piece: str) -> None:
    started = time.process_time()
    scrub_note(piece * (200_000 // len(piece)), ["Doe^Jane"])
    assert time.process_time() - started < 3


def test_all_spellings_of_a_patient_have_one_key_in_training_and_serving() -> None:
    hasher = KeyedHasher(KEY)
    for written in (["12", "00012", " 12 ", "12.0", "12\0"], ["P12", " P12", "P12 \0"], ["0", "000", "0.0"]):
        assert len({hasher.patient_key(each) for each in written}) == 1, written
    assert len({hasher.patient_key(each) for each in ("12", "P12", "p12", "120", "12.5", "1.2", "0x12")}) == 7
    assert hasher.patient_key(" \0") == ""

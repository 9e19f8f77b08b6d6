"""The audit log: a line for each result, whatever is changed in it is found, and nobody stands in it."""

import json
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher
from medsd.results.audit import AuditLog

KEY = b"a key for tests alone"
PREDICTION = Prediction(
    finding_set("nih14"), "refused", "flat", "a message", "nih14 1", "ab" * 32, instance_key="0f" * 8
)
WHEN = datetime(2026, 5, 4, 10, 30, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path / "folder" / "audit.jsonl", KeyedHasher(KEY))
    log.prepare()
    for number in range(4):
        log.append(b"%d" % number, PREDICTION, ("sr", "kos"), WHEN)
    return log


def test_a_line_says_which_input_had_which_outcome_from_which_model_and_when(log: AuditLog) -> None:
    told = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert (log.check().lines, log.check().broken) == (4, None)
    assert told[1]["input_sha256"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert told[1]["time"] == "2026-05-04T10:30:00.000+00:00" and told[1]["forms"] == ["sr", "kos"]
    assert (told[1]["status"], told[1]["reason"], told[1]["model_sha256"]) == ("refused", "flat", "ab" * 32)
    assert "message" not in told[1] and log.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [("refused", "scored", 1), ('"flat"', '"view"', 1), (None, 0, 1), (None, 1, 2), ("seal", "seel", 2)],
)
def test_a_line_that_is_changed_or_taken_out_is_found(log: AuditLog, old: str | None, new: object, broken: int) -> None:
    lines = log.path.read_text().splitlines(keepends=True)
    if old is None:
        del lines[int(str(new))]
    else:
        lines[0] = lines[0].replace(old, str(new))
    log.path.write_text("".join(lines))
    assert log.check().broken == broken


def test_who_has_another_key_cannot_add_a_line(log: AuditLog) -> None:
    AuditLog(log.path, KeyedHasher(b"another key for tests")).append(b"", PREDICTION, (), WHEN)
    assert log.check().broken == 5 and "line 5" in log.check().line()


def test_after_a_crash_in_the_middle_of_a_line_the_log_goes_on(log: AuditLog) -> None:
    with log.path.open("a") as file:
        file.write('{"time": "2026')
    log.append(b"", PREDICTION, (), WHEN)
    assert (log.check().lines, log.check().cut_off, log.check().broken) == (5, 1, None)


def test_a_line_for_which_the_disk_has_no_room_is_an_error(log: AuditLog) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, limits[1]))
        with pytest.raises(OSError, match="No space left"):
            log.append(b"", PREDICTION, (), WHEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.append(b"", PREDICTION, (), WHEN)
    assert (log.check().lines, log.check().cut_off, log.check().broken) == (5, 1, None)


def test_processes_may_share_a_log(log: AuditLog) -> None:
    script = f"""
from datetime import UTC, datetime
from pathlib import Path
from medsd.findings import finding_set
from medsd.inference.prediction import Prediction
from medsd.privacy import KeyedHasher
from medsd.results.audit import AuditLog
for _ in range(40):
    log = AuditLog(Path({str(log.path)!r}), KeyedHasher({KEY!r}))
    log.append(b"", Prediction(finding_set("nih14"), "scored"), (), datetime.now(UTC))
"""
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    assert (log.check().lines, log.check().broken) == (84, None)


def test_a_log_that_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit.jsonl", KeyedHasher(KEY)).prepare()
    with pytest.raises(DataError, match="cannot be read"):
        AuditLog(tmp_path / "none.jsonl", KeyedHasher(KEY)).check()

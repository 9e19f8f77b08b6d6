from __future__ import annotations

import pytest

from medsd import progress as progress_module
from medsd.progress import Progress


class Clock:
    """Goes on by ten seconds whenever it is looked at."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now


def test_a_plain_line_tells_rate_time_left_and_what_stands_beside(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress_module, "time", Clock())
    with Progress(1000, done=100) as shown:
        shown.advance(50, "3 refused")
        shown.advance(850, "4 refused")
    first, last = capsys.readouterr().err.splitlines()
    assert first == "150 of 1000 images, 2.5 a second, 05:40 left, 3 refused"
    assert last == "1000 of 1000 images, 4 refused"


def test_nothing_is_said_where_nothing_is_wanted(capsys):
    with Progress(1, wanted=False) as shown:
        shown.advance(1, "note")
    assert capsys.readouterr() == ("", "")

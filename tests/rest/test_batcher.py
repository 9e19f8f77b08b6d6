"""When a run of the model begins: full, or nobody else is on the way, or the first has waited long enough."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from medsd.findings import finding_set
from medsd.inference.predict import Study
from medsd.inference.prediction import Prediction
from medsd.rest import batcher
from medsd.rest.batcher import Batcher


class Model:
    """Says each study's note again, and remembers its runs; a note "fail" fails the run."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, studies: Sequence[Study]) -> list[Prediction]:
        self.runs.append([study.note for study in studies])
        assert self.may_go_on.wait(30)
        if any(study.note == "fail" for study in studies):
            raise ValueError("no model")
        return [Prediction(finding_set("nih14"), "scored", message=study.note) for study in studies]


def _run(asked: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """In a thread of its own: where Chromium was before, a loop runs in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asked).result()


async def _study(note: str, after: float = 0.0) -> Study:
    await asyncio.sleep(after)
    return Study(None, note)


def _together(model: Model, *asked: tuple[str, float], size: int = 4, ways: int = 1) -> list[Any]:
    async def ask() -> list[Any]:
        with ThreadPoolExecutor(ways) as threads:
            read = Batcher(model, size=size, ways=ways, threads=threads)
            return await asyncio.gather(*(read(_study(*each)) for each in asked), return_exceptions=True)

    return [each if isinstance(each, Exception) else each.message for each in _run(ask())]


def test_each_gets_its_own_answer_in_full_runs() -> None:
    model = Model()
    names = [str(number) for number in range(11)]
    assert _together(model, *((name, 0.0) for name in names)) == names
    assert [len(run) for run in model.runs] == [4, 4, 3]


def test_a_study_waits_for_one_that_is_being_decoded_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "LONGEST_S", 60.0)
    model = Model()
    assert _together(model, ("first", 0.0), ("second", 0.1)) == ["first", "second"]
    assert model.runs == [["first", "second"]]


@pytest.mark.parametrize(("longest", "runs"), [(60.0, [["here", "arriving"]]), (0.05, [["here"], ["arriving"]])])
def test_a_study_waits_for_one_that_arrives_and_not_for_one_that_takes_long_to(
    longest: float, runs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "LONGEST_S", longest)
    model = Model()

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as threads:
            read = Batcher(model, size=4, ways=1, threads=threads)

            async def slowly() -> Prediction:
                with read.expecting():
                    study = await _study("arriving", 1.0)
                return await read(_itself(study))

            return await asyncio.gather(slowly(), read(_study("here")))

    assert [each.message for each in _run(ask())] == ["arriving", "here"]
    assert model.runs == runs


async def _itself(study: Study) -> Study:
    return study


def test_what_took_long_to_decode_may_wait_as_long_for_others_that_are_being_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "LONGEST_S", 0.05)
    model = Model()
    assert _together(model, ("first", 1.0), ("second", 1.5)) == ["first", "second"]
    assert _together(model, ("first", 1.0), ("second", 1.5), ("quick", 1.3), ("late", 3.0))[0] == "first"
    assert model.runs == [["first", "second"], ["first", "quick", "second"], ["late"]]


def test_nobody_waits_longer_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "LONGEST_S", 0.05)
    model = Model()
    assert _together(model, ("first", 0.0), ("late", 1.0)) == ["first", "late"]
    assert model.runs == [["first"], ["late"]]


def test_no_more_runs_than_ways_at_a_time() -> None:
    model = Model()
    model.may_go_on.clear()
    threading.Timer(0.3, model.may_go_on.set).start()
    asked = [(str(number), 0.02 * number) for number in range(6)]
    assert _together(model, *asked, size=2) == [name for name, _ in asked]
    assert [len(run) for run in model.runs] == [2, 2, 2]  # what came meanwhile filled the runs that followed


def test_what_fails_costs_its_own_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> Study:
        raise KeyError("no study")

    async def ask() -> list[Any]:
        with ThreadPoolExecutor(1) as threads:
            read = Batcher(Model(), size=2, ways=1, threads=threads)
            asked = [read(_study("fail")), read(_study("fail")), read(broken()), read(_study("last"))]
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)

    *failed, last = _run(ask())
    assert [type(each) for each in failed] == [ValueError, ValueError, KeyError] and last.message == "last"

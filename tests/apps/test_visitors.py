"""Tokens that expire, sessions that belong to one visitor, and passwords that are checked in the same way for all."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from medsd.apps.web import visitors
from medsd.apps.web.visitors import FREE_GUESSES, GUESS_EVERY_S, Logins, TooManyGuessesError, Visitor, Visitors

T = TypeVar("T")


def _run(scene: Coroutine[Any, Any, T]) -> T:
    """What `scene` returns, in a thread of its own: Playwright leaves a running loop in the one of the tests."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, scene).result()


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _admitted(table: Visitors, user: str = "") -> tuple[str, Visitor]:
    token = table.admit(user)
    visitor = table.holder(token)
    assert visitor is not None
    return token, visitor


def test_a_token_expires_and_its_sessions_with_it() -> None:
    clock = Clock()
    table = Visitors(lifetime_s=60, clock=clock)
    token, visitor = _admitted(table, "anna")
    name = table.claim(visitor, "page1")
    clock.now += 59
    assert table.holder(token) is visitor
    clock.now += 1
    assert table.holder(token) is None and len(table) == 0
    _, other = _admitted(table, "ben")
    # The session is free again, and what Gradio still keeps under its old name is out of reach.
    assert table.claim(other, "page1") not in (None, name)


def test_the_table_of_tokens_is_bounded_and_a_visitor_without_a_page_goes_first() -> None:
    table = Visitors(most=3)
    reading, visitor = _admitted(table)
    table.claim(visitor, "page1")
    passing = [table.admit() for _ in range(10)]
    assert len(table) == 3 and table.holder(reading) is visitor and table.holder(passing[0]) is None


def test_a_session_belongs_to_whoever_named_it_first() -> None:
    table = Visitors()
    (token, anna), (_, ben) = _admitted(table, "anna"), _admitted(table, "ben")
    name = table.claim(anna, "page1")
    assert name is not None and table.claim(anna, "page1") == name == table.name(anna, "page1")
    assert table.claim(ben, "page1") is None and table.name(ben, "page1") is None
    table.dismiss(token)
    assert table.holder(token) is None and table.claim(ben, "page1") not in (None, name)


@pytest.mark.parametrize("session", [None, 7, "", "a" * 65, "../a", "a b", ["a"], "é"])
def test_what_is_no_session_is_nobodys(session: object) -> None:
    table = Visitors()
    _, visitor = _admitted(table)
    assert table.claim(visitor, session) is None and table.name(visitor, session) is None


def test_the_sessions_of_one_visitor_are_bounded() -> None:
    table = Visitors()
    _, visitor = _admitted(table)
    for number in range(visitors.MOST_SESSIONS + 5):
        table.claim(visitor, f"page{number}")
    assert len(visitor.sessions) == visitors.MOST_SESSIONS and table.name(visitor, "page4") is None


def test_a_known_and_an_unknown_user_cost_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return real(one, other)

    async def at_once(_: float) -> None:
        return

    monkeypatch.setattr(hmac, "compare_digest", compare)
    logins = Logins({"anna": "correct horse"}, sleep=at_once)

    async def guess() -> list[bool]:
        pairs = [("anna", "wrong"), ("anna", "x" * 5000), ("nobody", "wrong"), ("nobody", ""), ("", "\udcff")]
        return [await logins.check(*pair, "10.0.0.1") for pair in pairs]

    assert _run(guess()) == [False] * 5
    assert seen == [(32, 32)] * 5


def test_a_right_password_does_not_wait_behind_wrong_ones() -> None:
    async def scene() -> None:
        never = asyncio.Event()

        async def sleep(_: float) -> None:
            await never.wait()

        logins = Logins({"anna": "correct horse"}, sleep=sleep)
        wrong = [asyncio.create_task(logins.check("anna", f"guess {n}", "10.0.0.1")) for n in range(25)]
        await asyncio.sleep(0)
        assert await logins.check("anna", "correct horse", "10.0.0.1")  # while none of the others is answered
        assert not any(task.done() for task in wrong)
        never.set()
        assert await asyncio.gather(*wrong) == [False] * 25

    _run(scene())


@pytest.mark.parametrize("user", ["anna", "nobody"])
def test_guesses_are_bounded_for_each_user_and_address(user: str) -> None:
    clock, slept = Clock(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    logins = Logins({"anna": "correct horse"}, clock=clock, sleep=sleep)

    async def scene() -> None:
        for number in range(FREE_GUESSES):
            assert not await logins.check(user, f"guess {number}", "10.0.0.1")
        with pytest.raises(TooManyGuessesError):
            await logins.check(user, "one more", "10.0.0.1")
        assert await logins.check("anna", "correct horse", "10.0.0.2")  # the same user from elsewhere
        clock.now += GUESS_EVERY_S
        assert not await logins.check(user, "one more", "10.0.0.1")
        with pytest.raises(TooManyGuessesError):
            await logins.check(user, "and another", "10.0.0.1")

    _run(scene())
    assert slept == [visitors.WRONG_PASSWORD_DELAY_S] * (FREE_GUESSES + 1)


def test_the_memory_of_wrong_guesses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "MOST_GUESSERS", 10)

    async def at_once(_: float) -> None:
        return

    logins = Logins({"anna": "correct horse"}, sleep=at_once)

    async def scene() -> None:
        for number in range(50):
            await logins.check(f"user{number}", "wrong", "10.0.0.1")

    _run(scene())
    assert len(logins._free_at) == 10


async def _no_sleep(_: float) -> None:
    return


def test_guesses_at_many_users_do_not_free_those_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "MOST_GUESSERS", 10)
    logins = Logins({"anna": "correct horse"}, clock=Clock(), sleep=_no_sleep)
    for _ in range(FREE_GUESSES):
        _run(logins.check("anna", "wrong", "here"))
    for number in range(20):
        _run(logins.check(f"user {number}", "wrong", "here"))
    with pytest.raises(TooManyGuessesError):
        _run(logins.check("anna", "wrong", "here"))


def test_a_user_is_one_person_whatever_the_token() -> None:
    table = Visitors()
    token, first = _admitted(table, "anna")
    table.dismiss(token)
    (_, again), (_, ben) = _admitted(table, "anna"), _admitted(table, "ben")
    assert again.person == first.person != ben.person and again.key != first.key
    assert _admitted(table)[1].person != _admitted(table)[1].person  # nobody signed in

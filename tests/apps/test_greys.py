"""Grey values wait under a name that is good once, for one visitor."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from medsd.apps.web.reading import Reader
from medsd.apps.web.server import prepare_environment

prepare_environment()
pytest.importorskip("gradio")

from gradio.context import LocalContext  # noqa: E402

from medsd.apps.web import greys  # noqa: E402
from medsd.apps.web.desk import Desk  # noqa: E402
from medsd.apps.web.greys import LARGEST, Offer, hand_over, offer, wait_for_page  # noqa: E402
from medsd.apps.web.seat import Asked, Seat  # noqa: E402

IMAGE = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(autouse=True)
def _no_other_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greys, "_offers", {})


@contextmanager
def _page_of(visitor: str) -> Iterator[None]:
    """As Gradio answers a page of a visitor."""
    token = LocalContext.request.set(SimpleNamespace(session_hash=f"{visitor}-page"))  # type: ignore[arg-type]
    try:
        yield
    finally:
        LocalContext.request.reset(token)


def _offered(visitor: str, image: npt.NDArray[np.float32] = IMAGE) -> str:
    with _page_of(visitor):
        return offer(image)


def _sent(made: Offer | None) -> bytes:
    """What is sent of it, without an event loop: the tests of browsers keep one of their own."""
    pieces, sent = made.pieces() if made else None, b""
    while pieces is not None:
        try:
            pieces.__anext__().send(None)
        except StopIteration as piece:
            sent += piece.value
        except StopAsyncIteration:
            break
    return sent


def _within(seconds: float, call: Callable[[], object]) -> bool:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun < seconds


def test_the_browser_gets_the_grey_values_that_the_reading_has(reader: Reader, image: bytes) -> None:
    seat = Seat()
    seat.ask(Asked(image))
    with _page_of("anna"):
        shown = next(Desk(reader).read(seat)).image
    told = dict(re.findall(r'data-([\w-]+)="([^"]*)"', shown))
    width, height = map(int, told["size"].split())
    values = np.frombuffer(_sent(hand_over(told["greys"], "anna")), "<u2").reshape(height, width)
    assert seat.image is not None and seat.image.display is not None
    assert np.abs(values / LARGEST - seat.image.display).max() <= 0.5 / LARGEST + 1e-6


def test_a_name_is_good_once_and_for_one_visitor() -> None:
    name = _offered("anna")
    assert len(name) >= 22  # 128 bits
    assert hand_over(name, "ann") is None and hand_over(name, "ben") is None and hand_over("", "anna") is None
    made = hand_over(name, "anna")
    assert hand_over(name, "anna") is None
    assert _sent(made) == np.rint(IMAGE * LARGEST).astype("<u2").tobytes()
    assert hand_over(name, "anna") is None and name not in greys._offers


def test_what_a_page_left_before_its_end_is_kept_until_its_next_image() -> None:
    assert hand_over(_offered("anna"), "anna") is not None and hand_over(_offered("ben"), "ben") is not None
    name = _offered("anna")
    assert [each.session for each in greys._offers.values()] == ["ben-page", "anna-page"] and name in greys._offers


def test_an_image_of_many_pieces_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greys, "_PIECE", 5)
    assert _sent(hand_over(_offered("anna"), "anna")) == np.rint(IMAGE * LARGEST).astype("<u2").tobytes()


def test_values_beyond_the_range_are_its_ends() -> None:
    name = _offered("anna", np.array([[-0.5, 0.5, 1.5]], np.float32))
    assert np.frombuffer(_sent(hand_over(name, "anna")), "<u2").tolist() == [0, 2048, LARGEST]


def test_images_that_nobody_asks_for_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greys, "MOST", 3 * 2 * IMAGE.size)
    names = [_offered("anna") for _ in range(5)]
    assert [hand_over(name, "anna") is not None for name in names] == [False, False, True, True, True]


def test_of_many_who_ask_for_one_image_one_gets_it() -> None:
    name, got = _offered("anna"), []
    threads = [threading.Thread(target=lambda: got.append(hand_over(name, "anna"))) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sum(made is not None for made in got) == 1


def test_the_server_waits_until_the_image_is_sent_but_not_for_a_slow_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greys, "PATIENCE_S", 30.0)
    made = hand_over(_offered("anna"), "anna")
    with _page_of("anna"):
        sending = threading.Timer(0.2, lambda: _sent(made))
        sending.start()
        assert not _within(0.2, wait_for_page)
        sending.join()
        assert _within(10, wait_for_page)  # nothing is under way
        offer(IMAGE)
        monkeypatch.setattr(greys, "PATIENCE_S", 0.1)
        assert _within(10, wait_for_page)
    monkeypatch.setattr(greys, "PATIENCE_S", 30.0)
    with _page_of("ben"):
        assert _within(10, wait_for_page)  # the image is not Ben's
    assert _within(10, wait_for_page)  # where there is no page

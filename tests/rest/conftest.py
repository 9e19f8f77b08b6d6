"""A running server over a small bundle with cases, and what is sent to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from medsd.bundle.layout import Bundle
from medsd.listening import address_of, bound_socket
from medsd.privacy import KEY_VARIABLE
from medsd.rest.bodies import RequestLimits
from medsd.rest.engine import Engine
from medsd.rest.serve import HttpListening, server_of
from medsd.studies.phantom import generate_study, write_dicom
from tests.apps.reading_room import furnish

FORM = "/v1/predictions"
KEY = "a key for the tests of medsd"
BATCH = 4


@dataclass(frozen=True)
class Running:
    """A server that answers in a thread of this process."""

    engine: Engine
    address: str

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=120, trust_env=False, **more)

    def predict(self, content: bytes | None = None, **fields: object) -> httpx.Response:
        with self.client() as client:
            return client.post(FORM, files=form(content, **fields))


def form(content: bytes | None = None, **fields: object) -> list[tuple[str, Any]]:
    """A form as httpx takes it; the name of its file is a patient's."""
    parts: list[tuple[str, Any]] = [(name, (None, str(value))) for name, value in fields.items()]
    return parts if content is None else [*parts, ("file", ("PHANTOM^THORA.dcm", content))]


@contextmanager
def running(engine: Engine, limits: RequestLimits | None = None, **listening: Any) -> Iterator[Running]:
    where = HttpListening(port=0, **listening)
    with bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        server = server_of(engine, where, limits or RequestLimits())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Running(engine, address_of("127.0.0.1", listener.getsockname()[1], tls=where.tls is not None))
        finally:
            server.should_exit = True
            thread.join(40)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests never make or read the key file of the person who runs them."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of images and notes, with cases and conformal scores."""
    return furnish(tmp_path_factory.mktemp("rest") / "bundle")


@pytest.fixture(scope="package")
def engine(bundle: Bundle) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        engine = Engine(bundle.folder, workers=2, batch_size=BATCH, provider="cpu")
    with engine:
        yield engine


@pytest.fixture(scope="package")
def server(engine: Engine) -> Iterator[Running]:
    with running(engine) as server:
        yield server


@pytest.fixture(scope="package")
def images(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """DICOM files of as many phantoms."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(16):
        write_dicom(generate_study(number, seed=11, size=128), folder / f"{number}.dcm")
    return [folder / f"{number}.dcm" for number in range(16)]

"""Each status code with its sentence: who may ask, what is taken, how much, and how many at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from medsd.rest.bodies import RequestLimits
from medsd.rest.engine import Engine
from tests.rest.conftest import FORM, Running, form, running

TOKEN = "a-token-that-nobody-guesses"


def said(answer: httpx.Response) -> tuple[int, str]:
    """Status and the one sentence of an answer that is nothing else."""
    [(key, sentence)] = answer.json().items()
    assert key == "error" and sentence.endswith(".") and "Traceback" not in sentence
    return answer.status_code, sentence


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"patient": "CANARYSON"}, "note, k and coverage as fields."),
        ({"k": 101}, "k: input should be less than or equal to 100."),
        ({"k": "CANARYSON"}, "k: input should be a valid integer, unable to parse string as an integer."),
        ({"coverage": 1}, "coverage: input should be less than 1."),
        ({"note": "x" * 20_001}, "note: string should have at most 20000 characters."),
        ({"note": "x" * (2 << 20)}, "note, k and coverage as fields."),
        ({"file": "a text"}, "note, k and coverage as fields."),
    ],
)
def test_a_wrong_field_is_422(server: Running, fields: dict[str, Any], sentence: str) -> None:
    status, told = said(server.predict(**fields))
    assert status == 422 and told.endswith(sentence) and "CANARYSON" not in told


def test_a_form_has_one_image(server: Running) -> None:
    with server.client() as client:
        twice = client.post(FORM, files=[*form(b"one"), *form(b"two")])
        elsewhere = client.post(FORM, files=[("image", ("a.dcm", b"one"))])
        broken = client.post(FORM, content=b"--x\r\n\r\n", headers={"content-type": "multipart/form-data; boundary=y"})
        unbounded = client.post(FORM, content=b"x", headers={"content-type": "multipart/form-data"})
    for answer in (twice, elsewhere, broken, unbounded):
        assert said(answer)[0] == 422


def test_what_is_no_form_and_no_image_is_415(server: Running) -> None:
    with server.client() as client:
        punycode = {"content-type": "multipart/form-data; boundary=x; charset=Punycode"}
        for answer in (
            client.post(FORM, json={"file": "a.dcm"}),
            client.post(FORM, content=b"DICM"),
            client.post(FORM, content=b"DICM", headers={"content-type": "application/octet-stream"}),
            client.post(
                FORM, content=b"DICM", headers={"content-type": "application/dicom", "content-encoding": "gzip"}
            ),
            client.post(FORM, content=b"--x--\r\n", headers=punycode),  # a note in it would take hours
        ):
            assert said(answer)[0] == 415


def test_what_is_not_there_is_404_and_what_cannot_be_asked_so_is_405(server: Running) -> None:
    with server.client() as client:
        assert said(client.get("/docs"))[0] == 404
        assert said(client.get("/v2/models/another"))[0] == 404
        assert said(client.post(f"{FORM}/", files=form(b"x")))[0] == 404  # led nowhere, least of all to plain HTTP
        answer = client.get(FORM)
        assert said(answer)[0] == 405 and answer.headers["allow"] == "POST"


def test_a_page_of_another_site_and_another_name_of_this_machine_are_turned_away(server: Running) -> None:
    with server.client() as client:
        assert said(client.post(FORM, files=form(b"x"), headers={"sec-fetch-site": "cross-site"}))[0] == 403
        for host in ("attacker.example:8000", "[::1", ""):
            assert said(client.get("/v2", headers={"host": host}))[0] == 421
        for host in ("localhost", "[::1]:8000", "127.0.0.1"):
            assert client.get("/v2", headers={"host": host}).status_code == 200


def _slow(begun: threading.Event, go_on: threading.Event) -> Iterator[bytes]:
    """A form whose second half comes late."""
    yield b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nshort of'
    begun.set()
    go_on.wait(60)
    yield b" breath\r\n--x--\r\n"


SLOW = {"content-type": "multipart/form-data; boundary=x"}


def test_one_request_too_many_is_503_until_another_has_ended(engine: Engine) -> None:
    begun, go_on, answers = threading.Event(), threading.Event(), []
    with running(engine, RequestLimits(requests=1)) as server, server.client() as client:
        first = threading.Thread(
            target=lambda: answers.append(
                httpx.post(server.address + FORM[1:], content=_slow(begun, go_on), headers=SLOW)
            )
        )
        first.start()
        assert begun.wait(30)
        while not client.get("/v2").is_success:  # what has no body is not counted
            pass
        full = client.post(FORM, files=form(note="cough"))
        go_on.set()
        first.join(60)
        assert said(full)[0] == 503 and full.headers["retry-after"] == "1"
        assert answers[0].json()["status"] == "scored"
        assert client.post(FORM, files=form(note="cough")).status_code == 200


def test_what_is_too_large_is_413_and_what_comes_too_slowly_is_408(engine: Engine) -> None:
    def stream() -> Iterator[bytes]:  # without a declared length
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield from (bytes(1 << 16) for _ in range(64))

    with running(engine, RequestLimits(image_bytes=1 << 20, body_s=0.5)) as server, server.client() as client:
        for content in (bytes((1 << 20) + 1), bytes(3 << 20)):
            assert said(client.post(FORM, files=form(content))) == (
                413,
                "This has more than 1 MB, the most that is taken.",
            )
        assert said(client.post(FORM, content=stream(), headers=SLOW))[0] == 413
        infer = f"/v2/models/{engine.bundle.description.name}/infer"
        assert said(client.post(infer, content=bytes(3 << 20)))[0] == 413
        go_on = threading.Event()  # the client reads the answer when it has sent all
        threading.Timer(2.0, go_on.set).start()
        late = client.post(FORM, content=_slow(threading.Event(), go_on), headers=SLOW)
        assert said(late) == (408, "The request did not arrive within 0.5 seconds.")


def test_a_token_is_asked_for_everywhere_but_by_the_checks_of_health(engine: Engine) -> None:
    with running(engine, tokens=("another-token-of-the-site", TOKEN)) as server, server.client() as client:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for shown in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ä"):
            for path in ("/v2", "/metrics", "/openapi.json", "/nowhere"):
                answer = client.get(path, headers=[(b"authorization", shown.encode())])
                assert said(answer)[0] == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert client.get(path, headers={"host": "localhost/v2/health/live?"}).status_code == 401
        right = {"authorization": f"bearer {TOKEN}"}
        assert client.get("/v2", headers=right).status_code == 200
        described = client.get("/openapi.json", headers=right).json()
        assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"

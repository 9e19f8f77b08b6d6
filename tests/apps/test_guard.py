"""The running app under attack: another's session, another's files, another site, too much of everything."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from medsd.apps.web import server
from medsd.apps.web.reading import Reader
from medsd.studies.phantom import generate_study
from tests.apps.visit import Browser, file_data
from tests.studies.images import write_png

LOGINS = {"anna": "correct horse", "ben": "battery staple"}
EVIL = "https://evil.example"
NAME = "Doe_Jane_1957.png"


@pytest.fixture(scope="module")
def address(reader: Reader) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def guarded(reader: Reader) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0), logins=LOGINS)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "image.png"
    write_png(generate_study(60, seed=13, size=160), path)
    return path.read_bytes()


def _probabilities(said: str) -> set[str]:
    return set(re.findall(r'data-probability=\\?"([\d.]+)', said))


def _rows(said: str) -> list[dict[str, str]]:
    found = re.findall(r'data-content=\\"([^"\\]*)', said)
    return list(csv.DictReader(io.StringIO(base64.b64decode(found[-1]).decode())))


def _two(request: pytest.FixtureRequest, kind: str) -> tuple[Browser, Browser]:
    """Two people: with a login each, or on one machine without."""
    address = request.getfixturevalue(kind)
    logins = list(LOGINS.items()) if kind == "guarded" else [None, None]
    people = tuple(Browser(address, os.urandom(6).hex(), login) for login in logins)
    return people[0], people[1]


def test_twenty_people_with_the_same_file_are_all_answered(
    address: str, reader: Reader, image: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = {f"{value:.6f}" for value in reader.read(image).prediction.probabilities.values()}
    people = [Browser(address, f"same{number:02d}") for number in range(20)]
    paths = [person.upload(NAME, image).json()[0] for person in people]  # all are there before one is read
    assert len(set(paths)) == 20 and not any("Doe" in path for path in paths)

    def read(person: Browser, path: str) -> str:
        return person.read_file(file_data(path, NAME))

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(read, people, paths))
    assert [_probabilities(answer) for answer in answers] == [expected] * 20
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and "Doe" not in said


def test_the_same_files_in_several_batches_are_rows_of_each(
    address: str, image: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    people = [Browser(address, f"batch{number}") for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda person: person.score((NAME, image), (NAME, image)), people))
    for answer in answers:
        assert [row["status"] for row in _rows(answer)] == ["scored", "scored"] and "Doe" not in answer
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and "Doe" not in said


def test_the_table_of_a_batch_names_the_files_when_asked_to(address: str, image: bytes) -> None:
    person = Browser(address, "names1")
    assert [row["path"] for row in _rows(person.score((NAME, image), names=True))] == [NAME]


@pytest.mark.parametrize("kind", ["address", "guarded"])
def test_a_session_is_its_visitors_alone(kind: str, image: bytes, request: pytest.FixtureRequest) -> None:
    anna, ben = _two(request, kind)
    [path] = anna.upload(NAME, image).json()
    event = anna.join(anna.calls["upload"], file_data(path), "a note of Anna")
    theirs = {"session_hash": anna.session}
    refused = [
        ben.hear(anna.session),
        ben.ask(ben.calls["click"], session=anna.session),
        ben.client.post("/gradio_api/cancel", json={**theirs, "event_id": event, "fn_index": 0}),
        ben.client.post("/gradio_api/cancel", json={"session_hash": ben.session, "event_id": event, "fn_index": 0}),
        ben.client.post("/gradio_api/reset", json={"event_id": event}),
        ben.client.get(f"/gradio_api/heartbeat/{anna.session}"),
        ben.client.get(f"/gradio_api/file={path}"),
        ben.client.get(f"/gradio_api/file/{path}"),
        ben.client.get(f"/gradio_api/stream/{anna.session}/run/1/playlist.m3u8"),
        ben.client.post(f"/gradio_api/stream/{event}/close"),
        ben.client.post("/gradio_api/run/export", json={"data": [], **theirs}),
        ben.client.post("/gradio_api/call/export", json={"data": [], **theirs}),
        ben.client.get(f"/gradio_api/call/export/{event}"),
        ben.client.get("/gradio_api/deep_link", params=theirs),
        ben.client.post("/gradio_api/component_server", json={**theirs, "data": 0, "component_id": 1, "fn_name": "x"}),
    ]
    assert {answer.status_code for answer in refused} <= {403, 404}
    said = anna.finish(anna.calls["upload"])
    assert len(_probabilities(said)) > 1  # and nothing of it stopped the reading
    [name] = re.findall(r'data-greys=\\"([^"\\]+)', said)
    answers = [person.client.get(f"/greys/{name}") for person in (ben, anna, anna)]
    assert [answer.status_code for answer in answers] == [404, 200, 404]  # the image is hers, once
    assert len(answers[1].content) == 2 * 160 * 160 and answers[1].headers["cache-control"] == "no-store"


def test_without_a_login_nothing_of_a_session_is_reached(guarded: str) -> None:
    stranger = httpx.Client(base_url=guarded, trust_env=False)
    for route in ("cancel", "reset", "queue/join", "upload"):
        assert stranger.post(f"/gradio_api/{route}", json={"event_id": "x"}).status_code == 401
    for route in ("heartbeat/abc", "queue/data?session_hash=abc", "upload_progress?upload_id=a", "info", "app_id"):
        assert stranger.get(f"/gradio_api/{route}").status_code == 401
    assert stranger.get("/greys/a").status_code == 401
    assert "session" not in stranger.cookies and "password" in stranger.get("/").text


def test_the_cookie_of_a_visitor_is_secret_and_ends(address: str, guarded: str) -> None:
    given = [httpx.get(address, trust_env=False).headers["set-cookie"]]
    form = {"username": "anna", "password": LOGINS["anna"]}
    given.append(httpx.post(guarded + "login", data=form, trust_env=False).headers["set-cookie"])
    for cookie in given:
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and re.search(r"Max-Age=\d+", cookie)
        assert len(cookie.split(";")[0].split("=")[1]) >= 43  # 256 bits


def test_whoever_signs_out_has_to_sign_in_again(guarded: str) -> None:
    anna = Browser(guarded, "leaving", ("anna", LOGINS["anna"]))
    cookies = dict(anna.client.cookies)
    assert anna.client.get("/config").status_code == 200
    anna.client.get("/logout")
    assert httpx.get(f"{guarded}config", cookies=cookies, trust_env=False).status_code == 401


def _not_an_upload(kind: str, path: Path, tmp_path: Path) -> Any:
    """What a visitor must not name instead of an upload of theirs; `path` is another visitor's."""
    link = path.parent / f"{path.name}-link"
    if kind == "link":
        link.symlink_to(path)
    return {
        "folder": file_data(str(path.parent)),
        "parent": file_data(str(path.parent.parent)),
        "another's": file_data(str(path)),
        "detour": file_data(f"{path.parent}/../{path.parent.name}/{path.name}"),
        "link": file_data(str(link)),
        "elsewhere": file_data("/etc/hostname"),
        "address": file_data("http://127.0.0.1:9/x"),
        "no path": {"meta": {"_type": "gradio.FileData"}, "url": "http://127.0.0.1:9/x"},
        "number": {"path": 7, "meta": {"_type": "gradio.FileData"}},
        "device": file_data("/dev/zero"),
    }[kind]


@pytest.mark.parametrize("call", ["upload", "batch"])
@pytest.mark.parametrize(
    "kind", ["folder", "parent", "another's", "detour", "link", "elsewhere", "address", "no path", "number", "device"]
)
def test_only_an_upload_of_ones_own_is_read(
    address: str, image: bytes, tmp_path: Path, kind: str, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    anna, ben = Browser(address, os.urandom(6).hex()), Browser(address, os.urandom(6).hex())
    path = Path(anna.upload(NAME, image).json()[0])
    given = _not_an_upload(kind, path, tmp_path)
    answer = ben.ask(ben.calls[call], [given] if call == "batch" else given, "" if call == "upload" else False)
    assert answer.status_code == 403 and "upload" in answer.json()["detail"]
    assert path.is_file() and "Traceback" not in "".join(capfd.readouterr())
    assert len(_probabilities(anna.read_file(file_data(str(path))))) > 1 and not path.exists()


KEPT = {
    "GET /", "HEAD /", "POST /login", "GET /logout", "GET /config", "GET /assets/*", "GET /static/*",
    "GET /favicon.ico", "GET /manifest.json", "GET /theme.css", "GET /gradio_api/app_id", "GET /gradio_api/info",
    "POST /gradio_api/upload", "GET /gradio_api/upload_progress", "GET /gradio_api/heartbeat/*",
    "POST /gradio_api/queue/join", "GET /gradio_api/queue/data", "POST /gradio_api/cancel", "POST /gradio_api/reset",
    "GET /greys/*",
}  # fmt: skip


def test_the_app_has_these_routes_and_no_other(address: str, reader: Reader) -> None:
    from medsd.apps.web.app import build_page
    from medsd.apps.web.guard import ROUTES

    assert {f"{method} {route}" for route, methods in ROUTES.items() for method in methods} == KEPT
    import gradio as gr
    from fastapi import FastAPI

    # Whatever Gradio serves, this version of it or a later one, is asked for; what is not kept is not there.
    served = FastAPI()
    gr.mount_gradio_app(served, build_page(reader), path="/")
    client, asked = httpx.Client(base_url=address, trust_env=False), 0
    for path, methods in served.routes[-1].app.openapi()["paths"].items():  # type: ignore[attr-defined]
        for method in methods:
            kept = f"{method.upper()} {re.sub(r'{.*', '*', path)}"
            if kept not in KEPT:
                asked += 1
                answer = client.request(method, re.sub(r"{.*?}", "a", path))
                assert answer.status_code in (404, 405), (method, path)
    assert asked > 20


def test_a_recording_is_neither_taken_nor_kept(address: str) -> None:
    before = set(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"))
    answer = httpx.post(f"{address}gradio_api/process_recording", files={"video": ("a.mp4", b"x")}, trust_env=False)
    assert answer.status_code == 404 and set(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")) == before


FOREIGN = [
    {"origin": EVIL},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "null", "sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_site_changes_nothing(guarded: str, image: bytes, headers: dict[str, str]) -> None:
    anna = Browser(guarded, os.urandom(6).hex(), ("anna", LOGINS["anna"]))
    before = set(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*"))
    form = {"username": "anna", "password": LOGINS["anna"]}
    anna.client.headers.update(headers)
    refused = [
        anna.upload(NAME, image),
        anna.ask(anna.calls["click"], None, "a note"),
        anna.client.post("/login", data=form),
        anna.client.get("/logout"),
        anna.client.post("/gradio_api/cancel", json={"event_id": "x"}),
        anna.client.post("/gradio_api/reset", json={"event_id": "x"}),
        anna.client.get(f"/gradio_api/heartbeat/{anna.session}"),
        anna.hear(),
    ]
    assert {answer.status_code for answer in refused} == {403}
    assert all("access-control-allow-origin" not in answer.headers for answer in refused)
    assert set(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")) == before
    for header in headers:
        del anna.client.headers[header]
    assert anna.client.get("/config").status_code == 200  # still signed in


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "x", ""])
def test_an_origin_that_is_no_address_is_refused_without_a_traceback(
    address: str, origin: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert httpx.get(f"{address}config", headers={"origin": origin}, trust_env=False).status_code == 403
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("kind", ["address", "guarded"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_from_another_site_takes_no_page_from_its_visitor(
    kind: str, site: str, request: pytest.FixtureRequest
) -> None:
    address, headers = request.getfixturevalue(kind), {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    link = httpx.get(address, headers=headers, trust_env=False)  # a browser keeps the strict cookie back
    assert link.status_code == 200 and "set-cookie" not in link.headers and 'http-equiv="refresh"' in link.text
    anna = _two(request, kind)[0]
    assert "gradio" in anna.client.get("/").text  # what the browser asks next, from the app's own page
    assert "gradio" in anna.client.get("/", headers=headers).text  # and where it sends the cookie at once


@pytest.mark.parametrize("origin", [EVIL, "http://localhost:3000", "http://127.0.0.1:1", "null"])
def test_no_other_origin_is_let_read(address: str, origin: str) -> None:
    client = httpx.Client(base_url=address, trust_env=False, headers={"origin": origin})
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answers = [client.get("/"), client.get("/theme.css"), client.get("/config")]
    answers += [client.options(f"/gradio_api/{route}", headers=preflight) for route in ("upload", "queue/join")]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert all(answer.status_code >= 400 for answer in answers[3:])


def test_the_page_itself_may_ask(address: str, image: bytes) -> None:
    person = Browser(address, "myself1")
    person.client.headers.update({"origin": address.rstrip("/"), "sec-fetch-site": "same-origin"})
    assert len(_probabilities(person.read("image.png", image))) > 1


@pytest.mark.parametrize("declared", [True, False])
def test_all_uploads_together_stay_within_a_quota(reader: Reader, image: bytes, declared: bool) -> None:
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0), quota_gb=0.001)
    try:
        anna, ben = Browser(page.local_url, "quota1"), Browser(page.local_url, "quota2")
        large, body = b"x" * 700_000, b""
        [path] = anna.upload("large.dcm", large).json()
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'
        body = head + large + b"\r\n--x--\r\n"
        parts = body if declared else iter([body[:1000], body[1000:]])
        answer = ben.client.post(
            "/gradio_api/upload", content=parts, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code == 507 and "uploads" in answer.text and "again" in answer.text
        kept = [file for file in Path(path).parent.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in kept) <= 1_000_000
        anna.read_file(file_data(path))  # it was read, and is gone
        assert ben.upload("large.dcm", large).status_code == 200
    finally:
        page.close()


def test_an_upload_that_breaks_off_leaves_nothing(address: str) -> None:
    before = {file for file in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if file.is_file()}
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n'

    def broken() -> Iterator[bytes]:
        yield head + b"x" * 500_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        httpx.post(
            f"{address}gradio_api/upload",
            content=broken(),
            headers={"content-type": "multipart/form-data; boundary=x"},
            trust_env=False,
        )
    Browser(address, "after1").upload("b.dcm", b"y")  # answered after the other was noticed
    after = {file for file in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if file.is_file()}
    assert len(after - before) == 1


def _flood(visitors: list[Browser], image: bytes, jobs: int) -> list[int]:
    """What is answered to batches that are all asked for before one has ended."""

    def ask(number: int) -> int:
        visitor = visitors[number % len(visitors)]
        file = visitor.file("a.png", image)
        return visitor.ask(visitor.calls["batch"], [file], False, session=f"{visitor.session}{number}").status_code

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(ask, range(jobs)))


def test_one_visitor_cannot_fill_the_queue(address: str, image: bytes) -> None:
    from medsd.apps.web.guard import MOST_JOBS

    answers = _flood([Browser(address, "flood")], image, 80)
    # A job that ended while they came makes room for one more.
    assert set(answers) == {200, 429} and MOST_JOBS <= answers.count(200) < 64
    assert len(_probabilities(Browser(address, "other").read("image.png", image))) > 1


def test_the_pages_of_one_user_share_the_bound(guarded: str, image: bytes) -> None:
    people = [Browser(guarded, f"share{number}", ("anna", LOGINS["anna"])) for number in range(4)]
    answers = _flood(people, image, 80)
    assert set(answers) == {200, 429} and answers.count(200) < 64


def test_who_signs_out_and_in_again_has_no_more_jobs(guarded: str, image: bytes) -> None:
    answers = []
    for _ in range(3):
        ben = Browser(guarded, "again", ("ben", LOGINS["ben"]))
        answers += _flood([ben], image, 20)
        ben.client.get("/logout")
    # A job that ended while they came makes room for one more.
    assert answers.count(200) < 32


def test_a_login_form_is_small(guarded: str) -> None:
    # Anybody may send one: to take a form of some megabytes apart would stop the server for seconds.
    answer = httpx.post(f"{guarded}login", content=b"a=b&" * 10_000, trust_env=False)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"session_hash": 7}',
        b"[" * 100_000,
        b'{"session_hash": "a", "data": "x"}',
        b'{"session_hash": "a", "data": [], "fn_index": 9999}',
        b'{"session_hash": "a", "data": [], "fn_index": [1]}',
        b'{"session_hash": "a", "data": "x", "fn_index": 0}',
    ],
)
def test_a_body_that_no_page_sends_is_refused_without_a_traceback(
    address: str, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    client = httpx.Client(base_url=address, trust_env=False, headers={"content-type": "application/json"})
    for route in ("queue/join", "cancel", "reset"):
        assert 400 <= client.post(f"/gradio_api/{route}", content=body).status_code < 500
    assert client.post("/gradio_api/queue/join", content=b"x" * 5_000_000).status_code == 413
    assert client.post("/gradio_api/upload", content=body).status_code == 400
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_job_that_is_not_there_cannot_be_cancelled(address: str) -> None:
    anna = Browser(address, os.urandom(6).hex())
    for route in ("cancel", "reset"):
        body = {"session_hash": anna.session, "event_id": "x", "fn_index": 0}
        assert anna.client.post(f"/gradio_api/{route}", json=body).status_code == 404


def test_what_a_request_holds_is_not_logged_when_it_fails(
    address: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    anna = Browser(address, os.urandom(6).hex())
    for call in anna.calls.values():  # no input of the page takes such a value
        anna.ask(call, *[{"Canary^Anna": 1}] * len(call["inputs"]))
    anna.listen()
    said = "".join([*capfd.readouterr(), caplog.text])
    assert "Canary" not in said and "a request failed" in said

"""Serving: who may ask, on which address, with which headers; each wrong start is one clear line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsd.apps.web import server
from medsd.apps.web.reading import Reader
from medsd.apps.web.visitors import WRONG_PASSWORD_DELAY_S
from medsd.bundle.layout import Bundle
from medsd.errors import BundleError, SettingsError
from tests.apps.reading_room import copy_bundle


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_a_loopback_address_is_this_machine_alone(host: str) -> None:
    assert server.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.4", "localhost.example.org", ""])
def test_any_other_address_is_not(host: str) -> None:
    assert not server.is_loopback(host)


def test_another_address_needs_a_login(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.LOGIN_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match="login"):
        server.serve(bundle.folder, host="0.0.0.0")


def test_a_port_in_use_is_one_clear_line(bundle: Bundle) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"port {port} .* in use"):
            server.serve(bundle.folder, port=port)


def test_a_missing_bundle_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        server.serve(tmp_path / "nowhere", port=0)


def test_an_index_of_another_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    from tests.bundles import tiny_bundle

    copy = copy_bundle(bundle, tmp_path / "copy")
    other = tiny_bundle(copy, findings="phantom8", fused=True, seed=5)
    with pytest.raises(BundleError, match="case index"):
        server.open_reader(other)


def test_logins_are_read_from_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "logins"
    path.write_text("# readers\nanna:correct horse\nben:with:colon-in-it\n", encoding="utf-8")
    assert server.read_logins(path, {}) == {"anna": "correct horse", "ben": "with:colon-in-it"}
    assert server.read_logins(None, {server.LOGIN_VARIABLE: "eva:long enough"}) == {"eva": "long enough"}
    assert server.read_logins(None, {}) == {}


@pytest.mark.parametrize("text", ["anna", "anna:short", ":nobody at all", "", "# only a remark"])
def test_a_wrong_login_file_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "logins"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        server.read_logins(path, {})
    assert "short" not in str(caught.value) and "logins" in str(caught.value)


@pytest.fixture(scope="module")
def address(reader: Reader) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


def _get(url: str, **headers: str) -> tuple[int, dict[str, str], str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode(errors="replace")


def test_the_page_answers_with_headers_that_keep_it_to_itself(address: str) -> None:
    status, headers, page = _get(address)
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200 and "medsd" in page
    assert "default-src 'self'" in headers["content-security-policy"] and headers["referrer-policy"] == "no-referrer"


def test_the_page_names_no_font_or_script_from_elsewhere(address: str) -> None:
    _, _, page = _get(address)
    for place in ("googleapis", "gstatic", "cdnjs", "jsdelivr", "unpkg"):
        assert place not in page


def test_another_name_of_this_machine_is_turned_away(address: str) -> None:
    assert _get(address, Host="rebound.example.org")[0] == 400


def test_no_interface_is_described_and_no_file_of_the_bundle_is_served(address: str, bundle: Bundle) -> None:
    assert _get(address + "openapi.json")[0] == 404 and _get(address + "docs")[0] == 404
    assert _get(f"{address}gradio_api/file={bundle.folder / 'bundle.json'}")[0] in (403, 404)
    assert json.loads(_get(address + "gradio_api/info")[2])["named_endpoints"] == {}


def test_nothing_heavy_is_imported_before_the_request_is_checked() -> None:
    heavy = "('gradio', 'torch', 'lancedb', 'onnxruntime', 'matplotlib')"
    code = f"import sys, medsd.apps.web.server; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert out.stdout.strip() == "[]"


def test_the_command_serves_and_cleans_up_when_it_is_ended(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "medsd.cli", "app", str(bundle.folder), "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    environment |= {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}  # as in many hospitals
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        url = next(word for word in said.split() if word.startswith("http://127.0.0.1:"))
        assert bundle.label in said and _get(url)[0] == 200 and list(tmp_path.glob("medsd-app-*"))
        running.terminate()
        assert running.wait(timeout=20) == 0
    assert not list(tmp_path.glob("medsd-app-*"))


def test_the_page_answers_on_ipv6_too(reader: Reader) -> None:
    pytest.importorskip("gradio")
    try:
        port = server.free_port("::1", 0)
    except SettingsError:
        pytest.skip("this machine has no IPv6")
    page = server.launch(reader, host="::1", port=port)
    assert page.local_url.startswith("http://[::1]:") and _get(page.local_url)[0] == 200
    page.close()


@pytest.fixture(scope="module")
def guarded(reader: Reader) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0), logins={"anna": "correct horse"})
    yield page.local_url
    page.close()


def _sign_in(address: str, password: str) -> int:
    form = urllib.parse.urlencode({"username": "anna", "password": password}).encode()
    try:
        with urllib.request.urlopen(f"{address}login", data=form, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_without_signing_in_nothing_is_told_or_taken(guarded: str, bundle: Bundle) -> None:
    assert bundle.model_sha256 not in _get(guarded)[2]
    assert _get(guarded + "config")[0] == 401
    upload = urllib.request.Request(f"{guarded}gradio_api/upload", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(upload, timeout=10)


def test_the_right_password_signs_in_and_a_wrong_one_waits(guarded: str) -> None:
    started = time.perf_counter()
    assert _sign_in(guarded, "wrong horse") == 400 and time.perf_counter() - started >= WRONG_PASSWORD_DELAY_S
    assert _sign_in(guarded, "correct horse") == 200

"""`medsd serve`: how it starts and ends, what it writes, and that nobody's identity comes out of it."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from medsd.bundle.layout import Bundle
from medsd.cli import app
from medsd.errors import MedsdError
from medsd.listening import server_context
from medsd.rest.engine import Engine
from tests import canary
from tests.canary import NOTE, traces, traces_in
from tests.certificates import self_signed
from tests.rest.conftest import FORM, Running, form, running
from tests.rest.test_refusals import said

ROOT = Path(__file__).parents[2]


@pytest.fixture
def serve(bundle: Bundle, tmp_path: Path) -> Iterator[Any]:
    """Starts `medsd serve` with options; its address, and the process."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: object) -> tuple[str, subprocess.Popen[str]]:
        command = [
            sys.executable,
            "-m",
            "medsd.cli",
            "serve",
            bundle.folder,
            "--port",
            0,
            "--provider",
            "cpu",
            *options,
        ]
        kept = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
        (tmp_path / "temporary").mkdir()
        with (tmp_path / "log.txt").open("w") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                env=os.environ | kept,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        [address] = re.findall(r"^medsd serve: tiny-fused 1 on (https?://127\.0\.0\.1:\d+)/$", line)
        return address, process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_her_identity_is_in_what_is_sent_alone_and_each_answer_has_a_line_in_the_log(
    serve: Any, images: list[Path], tmp_path: Path
) -> None:
    address, process = serve("--audit", tmp_path / "audit.jsonl", "--workers", 1)
    hers = canary.film(images[0])
    sent = [hers, hers[:-2000], NOTE.encode(), hers.replace(b"DX", b"OT", 1)]
    name = f"{canary.FAMILY}_{canary.NUMBER}.dcm"
    heard = ""
    with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
        for content in sent:
            answer = client.post(FORM, files=[*form(note=NOTE, k=3, coverage=0.9), ("file", (name, content))])
            assert answer.status_code == 200
            heard += answer.text + str(answer.headers)
        for wrong in ({canary.FAMILY: "x"}, {"k": canary.NUMBER}, {"coverage": NOTE}):
            heard += client.post(FORM, files=form(hers, **wrong)).text
        heard += client.post(f"/v2/models/{canary.FAMILY}/infer", json={"inputs": [{"name": NOTE}]}).text
        heard += client.get(f"/{canary.FAMILY}?patient={canary.NUMBER}").text + client.get("/metrics").text
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(sent) and {line["status"] for line in lines} > {"refused"}
    assert {tuple(line["forms"]) for line in lines} == {("json",)} and lines[0]["image"]
    assert all(traces_in(content) for content in sent)
    assert traces_in(heard.encode()) == set() and traces(tmp_path) == []


def test_ctrl_c_ends_it_when_what_is_under_way_is_done(serve: Any, images: list[Path], tmp_path: Path) -> None:
    address, process = serve("--workers", 1)

    def slowly() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nshort of'
        process.send_signal(signal.SIGINT)
        yield b" breath\r\n--x--\r\n"

    assert httpx.get(f"{address}/v2/health/ready", timeout=120, trust_env=False).json() == {"ready": True}
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(address + FORM, content=slowly(), headers=headers, timeout=120, trust_env=False)
    assert answer.json()["status"] == "scored"
    assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/v2", trust_env=False)
    assert (tmp_path / "log.txt").read_text() == ""


def test_only_who_shows_a_certificate_is_heard(engine: Engine, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    knows, shows = (ssl.create_default_context(cafile=certificate) for _ in range(2))
    shows.load_cert_chain(certificate, key)
    with running(engine, tls=server_context(certificate, key, certificate)) as server:
        with server.client(verify=shows) as client:
            assert client.post(FORM, files=form(note="cough")).json()["status"] == "scored"
        with server.client(verify=knows) as client, pytest.raises(httpx.TransportError):
            client.get("/v2/health/live")


def test_without_its_audit_log_no_result_leaves(
    server: Running, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def append(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(server.engine, "_audit", Full())
    told = said(server.predict(images[0].read_bytes()))
    assert told == (503, "The audit log cannot be written, so that no result is given.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "name the tokens of those who may ask with --token-file"),
        (("--tls-cert", "x.pem"), "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca", "x.pem"), "--tls-client-ca needs --tls-cert and --tls-key"),
        (("--tls-cert", "x.pem", "--tls-key", "y.pem"), "cannot be loaded"),
        (("--token-file", "nowhere.txt"), "the tokens cannot be read (FileNotFoundError)"),
        (("--token-file", "short.txt"), "write one token on each line"),
        (("--token-file", "empty.txt"), "write one token on each line"),
    ],
)
def test_wrong_options_are_one_line_and_exit_status_2(
    options: tuple[str, ...], message: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a-token-that-nobody-guesses\nsecret\n")
    Path("empty.txt").write_text("\n")
    told = CliRunner().invoke(app, ["serve", str(bundle.folder), *options])
    line = str(told.exception) if isinstance(told.exception, MedsdError) else told.stderr
    assert isinstance(told.exception, MedsdError) or told.exit_code == 2
    assert message in " ".join(line.split()) and "secret" not in line


def test_what_a_bundle_does_not_have_is_422(image_bundle: Bundle, images: list[Path]) -> None:
    with Engine(image_bundle.folder, workers=1, provider="cpu") as engine, running(engine) as server:
        status, sentence = said(server.predict(images[0].read_bytes(), k=3))
        assert (status, sentence) == (422, "k: tiny 1 has no cases; leave it out.")
        status, sentence = said(server.predict(images[0].read_bytes(), coverage=0.9))
        assert status == 422 and "without conformal scores" in sentence
        assert server.predict(images[0].read_bytes()).json()["status"] in ("scored", "warned")

"""The running app asked as a browser asks it: ten people at once, and files that mean harm."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from medsd.apps.web import server
from medsd.apps.web.reading import MAX_NOTE, Reader
from medsd.studies.phantom import generate_study
from tests.apps.visit import Browser
from tests.studies.images import write_png


@pytest.fixture(scope="module")
def address(reader: Reader) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = server.launch(reader, port=server.free_port("127.0.0.1", 0))
    yield page.local_url
    page.close()


def _png(number: int, tmp_path: Path) -> bytes:
    path = tmp_path / f"{number}.png"
    write_png(generate_study(number, seed=13, size=160), path)
    return path.read_bytes()


def _probabilities(said: str) -> set[str]:
    return set(re.findall(r'data-probability=\\?"([\d.]+)', said))


def test_ten_people_at_once_get_their_own_answers(address: str, reader: Reader, tmp_path: Path) -> None:
    images = [_png(number, tmp_path) for number in range(10)]
    expected = [{f"{value:.6f}" for value in reader.read(image).prediction.probabilities.values()} for image in images]
    people = [Browser(address, f"person{number:02d}") for number in range(10)]
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda pair: pair[0].read("image.png", pair[1]), zip(people, images, strict=True)))
    assert len({frozenset(each) for each in expected}) == 10
    assert [_probabilities(answer) for answer in answers] == expected


def test_a_file_beyond_the_limit_is_turned_away_while_it_arrives(address: str) -> None:
    def blocks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="large.dcm"\r\n\r\n'
        for _ in range(300):
            yield bytes(1_000_000)
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        answer = httpx.post(
            f"{address}gradio_api/upload", content=blocks(), headers=headers, timeout=120, trust_env=False
        )
        assert answer.status_code == 413 and "Traceback" not in answer.text
    except httpx.TransportError:
        pass  # the server may hang up before everything is sent
    kept = [path.stat().st_size for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]
    assert max(kept, default=0) < 300_000_000


@pytest.mark.parametrize("name", ["../../../../evil.dcm", "..\\..\\evil.dcm", "/etc/evil.dcm", "a/../../evil.dcm"])
def test_a_name_that_leads_elsewhere_stays_in_the_folder_of_uploads(address: str, name: str) -> None:
    answer = Browser(address, "traverse").upload(name, b"neither DICOM nor an image")
    home = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if answer.status_code == 200:
        [path] = answer.json()
        assert Path(path).resolve().is_relative_to(home) and ".." not in Path(path).parts
    assert not Path("/etc/evil.dcm").exists() and not list(home.parent.glob("evil.dcm"))


def test_a_path_that_was_not_uploaded_is_not_read(address: str, reader: Reader) -> None:
    someone = Browser(address, "elsewhere1")
    call = someone.calls["upload"]
    file = {"path": str(reader.bundle.folder / "bundle.json"), "meta": {"_type": "gradio.FileData"}}
    data = [file, "", *[None] * (len(call["inputs"]) - 2)]
    answer = someone.client.post(
        "/gradio_api/queue/join",
        json={"data": data, "fn_index": call["id"], "session_hash": someone.session, "trigger_id": None},
    )
    said = answer.text + someone.client.get("/gradio_api/queue/data", params={"session_hash": someone.session}).text
    assert '"success":false' in said and "schema_version" not in said
    assert (reader.bundle.folder / "bundle.json").is_file()  # an upload is deleted once it is read: this is none


def _bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.dcm", bytes(200_000_000))
    return buffer.getvalue()


HOSTILE: dict[str, Any] = {
    "bomb.zip": _bomb,
    "picture.svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "empty.dcm": lambda: b"\0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_refused_in_a_sentence(address: str, name: str) -> None:
    said = Browser(address, f"hostile{len(name)}").read(name, HOSTILE[name]())
    assert "Not read." in said and "Traceback" not in said and "data-finding" not in said and "alert(1)" not in said


def test_a_note_of_a_million_characters_is_refused_in_a_sentence(address: str, tmp_path: Path) -> None:
    said = Browser(address, "longnote").read("image.png", _png(0, tmp_path), "x" * 1_000_000)
    # The page's own box refuses it first; whoever goes round the page meets the reader's limit.
    assert "data-finding" not in said and ('"success":false' in said or f"{MAX_NOTE:,}" in said)
    assert len(json.dumps(said)) < 3_000_000

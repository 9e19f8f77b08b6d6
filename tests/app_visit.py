"""A whole visit to the app, for `tests.test_nothing_phones_home`: read an image, save it as PDF, read a batch, stop.

`python -m tests.app_visit BUNDLE IMAGE…` starts the app as a user does and speaks to it as a browser does.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx


class Visitor:
    """Asks the app for what its components do, by their `elem_id`."""

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=address, timeout=120, trust_env=False)
        self._client.get("/").raise_for_status()
        config = self._client.get("/config").json()
        self._parts = {part["id"]: part["props"] for part in config["components"]}
        self._calls = config["dependencies"]

    def upload(self, *paths: Path) -> list[dict[str, Any]]:
        """Gradio's descriptions of the files on the server."""
        files = [("files", (path.name, path.read_bytes())) for path in paths]
        kept = self._client.post("/gradio_api/upload", files=files).raise_for_status().json()
        return [
            {"path": place, "orig_name": path.name, "size": path.stat().st_size, "meta": {"_type": "gradio.FileData"}}
            for place, path in zip(kept, paths, strict=True)
        ]

    def do(self, part: str, event: str, value: Any = None) -> str:
        """What the server says until the handler has ended; `value` is the first input, the others stay as they are."""
        [call] = [call for call in self._calls if any(self._is(target, part, event) for target in call["targets"])]
        said = self._ask(call, value)
        for after in (each for each in self._calls if each.get("trigger_after") == call["id"]):
            said += self._ask(after)
        return said

    def _ask(self, call: dict[str, Any], value: Any = None) -> str:
        data = [self._parts[number].get("value") for number in call["inputs"]]
        if value is not None:
            data[0] = value
        asked = {"data": data, "fn_index": call["id"], "session_hash": "a0visitor0x", "trigger_id": None}
        self._client.post("/gradio_api/queue/join", json=asked).raise_for_status()
        said = self._client.get("/gradio_api/queue/data", params={"session_hash": "a0visitor0x"}).text
        assert '"success":true' in said, said[-500:]
        return said

    def _is(self, target: list[Any], part: str, event: str) -> bool:
        return target[1] == event and self._parts[target[0]].get("elem_id") == part


def main(bundle: str, *images: str) -> None:
    command = [sys.executable, "-m", "medsd.cli", "app", bundle, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        address = re.search(r"http://[0-9.:]+", app.stdout.readline())
        assert address is not None
        visitor, paths = Visitor(address[0]), [Path(image) for image in images]
        said = visitor.do("upload", "upload", visitor.upload(paths[0])[0])
        assert "data-finding" in said and "data-case" in said, said[-500:]
        assert "medsd-reading.pdf" in visitor.do("save-pdf", "click")
        assert "medsd-batch.csv" in visitor.do("batch-files", "upload", visitor.upload(*paths))
        app.send_signal(signal.SIGTERM)
        assert app.wait(60) in (0, 130)


if __name__ == "__main__":
    main(*sys.argv[1:])

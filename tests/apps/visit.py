"""A visitor of the running app who speaks HTTP as the page does."""

from __future__ import annotations

from typing import Any

import httpx


class Browser:
    """One visitor with a cookie jar of their own: uploads, and hears what the page would show.

    Args:
        address: of the app.
        session: as the page draws one.
        login: user and password, where they are asked for.
    """

    def __init__(self, address: str, session: str, login: tuple[str, str] | None = None) -> None:
        self.client = httpx.Client(base_url=address, timeout=120, trust_env=False)
        self.session = session
        if login:
            self.client.post("/login", data={"username": login[0], "password": login[1]})
        config = self.client.get("/config").json()
        # Of each event by its name, the first that reaches the server: "upload" reads, "batch" scores.
        self.calls: dict[str, Any] = {
            target[1]: call for call in reversed(config["dependencies"]) for target in call["targets"] if target[1]
        }
        uploads = [call for call in config["dependencies"] if "upload" in [target[1] for target in call["targets"]]]
        self.calls["batch"] = uploads[-1]

    def upload(self, name: str, content: bytes) -> httpx.Response:
        return self.upload_all((name, content))

    def upload_all(self, *files: tuple[str, bytes]) -> httpx.Response:
        return self.client.post("/gradio_api/upload", files=[("files", file) for file in files])

    def file(self, name: str, content: bytes) -> dict[str, Any]:
        """An uploaded file as an input."""
        [path] = self.upload(name, content).json()
        return file_data(path, name)

    def ask(self, call: dict[str, Any], *data: Any, session: str | None = None) -> httpx.Response:
        """Try to put an event into the queue, its missing inputs empty."""
        data = (*data, *[None] * (len(call["inputs"]) - len(data)))
        session = session or self.session
        return self.client.post(
            "/gradio_api/queue/join",
            json={"data": data, "fn_index": call["id"], "session_hash": session, "trigger_id": None},
        )

    def join(self, call: dict[str, Any], *data: Any, session: str | None = None) -> str:
        """Put an event into the queue; its id."""
        return str(self.ask(call, *data, session=session).raise_for_status().json()["event_id"])

    def hear(self, session: str | None = None) -> httpx.Response:
        """What the server answers to whoever listens to a session."""
        return self.client.get("/gradio_api/queue/data", params={"session_hash": session or self.session})

    def listen(self, session: str | None = None) -> str:
        """What the server says until nothing of this session is left in the queue."""
        return self.hear(session).text

    def after(self, call: dict[str, Any]) -> list[dict[str, Any]]:
        """The events that the page starts when `call` is done."""
        return [
            each for each in self.client.get("/config").json()["dependencies"] if each["trigger_after"] == call["id"]
        ]

    def finish(self, call: dict[str, Any], session: str | None = None) -> str:
        """Everything that the server says until `call` and what follows it have ended."""
        said = self.listen(session)
        for following in self.after(call):
            self.join(following, session=session)
            said += self.listen(session)
        return said

    def read_file(self, file: dict[str, Any], note: str = "", session: str | None = None) -> str:
        """Everything that the server says until an uploaded image has been read."""
        self.join(self.calls["upload"], file, note, session=session)
        return self.finish(self.calls["upload"], session)

    def read(self, name: str, content: bytes, note: str = "", session: str | None = None) -> str:
        """Everything that the server says until the image has been read."""
        return self.read_file(self.file(name, content), note, session)

    def score(self, *files: tuple[str, bytes], names: bool = False) -> str:
        """Everything that the server says until all rows of a batch are there."""
        batch = self.calls["batch"]
        self.join(batch, [file_data(path) for path in self.upload_all(*files).json()])
        said = self.listen()
        for following in self.after(batch):
            self.join(following, None, names, "image", "dropped")
            said += self.listen()
        return said


def file_data(path: str, name: str = "image.dcm") -> dict[str, Any]:
    """An upload, as the page names it."""
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

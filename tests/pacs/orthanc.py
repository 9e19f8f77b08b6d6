"""Orthanc on loopback as the archive of the tests, with a folder and ports of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.pacs.peers import free_port, wait_until

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TITLE = "ORTHANC"
NEEDED = pytest.mark.skipif(
    not PROGRAM or not PLUGIN.exists(), reason="Orthanc is not installed: apt-get install orthanc orthanc-dicomweb"
)
# What modalities send goes on to the node, as the rules of a hospital's archive have it.
_FORWARD = """
function OnStoredInstance(instance, tags, metadata)
    if tags['Modality'] == 'DX' then SendToModality(instance, 'node') end
end
"""


class Orthanc:
    """A running Orthanc; a context manager that ends it.

    Args:
        folder: of its configuration and images; they are there again after `stop` and `start`.
        node: the port of the node that it knows as ``node``.
        forwards: whether it sends each image on to the node.
    """

    def __init__(self, folder: Path, node: int, *, forwards: bool = True) -> None:
        self._folder, self._process = folder, None
        self.port, self._web = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self._web}/dicom-web"
        folder.mkdir()
        (folder / "forward.lua").write_text(_FORWARD)
        (folder / "orthanc.json").write_text(
            json.dumps({
                "Name": "tests", "StorageDirectory": str(folder / "images"), "IndexDirectory": str(folder / "images"),
                "Plugins": [str(PLUGIN)], "LuaScripts": ["forward.lua"] if forwards else [],
                "HttpPort": self._web, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
                "DicomPort": self.port, "DicomAet": TITLE, "DicomCheckCalledAet": True, "DicomScuTimeout": 5,
                "DicomModalities": {"node": ["MEDSD", "127.0.0.1", node]},
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            })
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start, or start again."""
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen([str(PROGRAM), "orthanc.json"], cwd=self._folder, stdout=log, stderr=log)
        wait_until(self._answers, 120)

    def stop(self) -> None:
        """End it as an administrator would."""
        self._process.terminate()
        self._process.wait(60)

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            self.ask("/system")
        except (URLError, OSError):
            return False
        return True

    def ask(self, path: str, content: object = None) -> Any:
        """What its REST API answers to GET, or to POST where there is something to send."""
        sent = None if content is None else json.dumps(content).encode()
        with urlopen(Request(f"http://127.0.0.1:{self._web}{path}", sent), timeout=60) as answer:
            return json.load(answer)

    def find(self, modality: str) -> list[str]:
        """Its own identifiers of the instances of a modality."""
        return list(self.ask("/tools/find", {"Level": "Instance", "Query": {"Modality": modality}}))

    def forward(self, instances: list[str]) -> None:
        """Send images on to the node, as often as it is asked; a node that does not answer leaves a failed job."""
        self.ask("/modalities/node/store", {"Resources": instances, "Asynchronous": True})

    def results(self) -> Counter[str]:
        """How many results each image has, by the UID in `tests.pacs.peers.one_result`."""
        told = (self.ask(f"/instances/{each}/simplified-tags") for each in self.find("SR"))
        return Counter(tags["ReferencedSOPInstanceUID"] for tags in told)

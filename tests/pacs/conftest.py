"""`medsd receive` as a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="medsd[pacs]")

from tests.pacs.peers import Running


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    running: list[Running] = []

    def begin(*arguments: object) -> Running:
        running.append(Running(tmp_path / f"log{len(running)}", *arguments))
        return running[-1]

    yield begin
    for one in running:
        one.kill()

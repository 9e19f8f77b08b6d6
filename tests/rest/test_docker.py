"""The files for Docker fit the repository and the verbs. Docker itself is not asked: no test needs it."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from medsd.cli import app
from medsd.pacs.receive import Listening

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docs" / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PINNED = re.compile(r"[\w./-]+:\d[\w.-]*")


def instructions() -> list[tuple[str, list[str]]]:
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines if line and not line.startswith("#")]


def parameters(name: str) -> dict[str, Any]:
    """What a service's command means to its verb; raises where an option or an argument does not fit."""
    verb, *words = shlex.split(OURS[name]["command"])
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    return command.make_context(verb, words).params


def test_every_image_is_pinned() -> None:
    [base] = [words for name, words in instructions() if name == "FROM"]
    for image in (*base, *(service["image"] for service in SERVICES.values())):
        assert PINNED.fullmatch(image), image


@pytest.mark.parametrize("name", OURS)
def test_each_command_fits_its_verb_and_what_is_mounted(name: str) -> None:
    service, given = OURS[name], parameters(name)
    mounted = [volume.split(":")[1] for volume in service["volumes"]] + [
        f"/run/secrets/{s}" for s in service.get("secrets", ())
    ]
    used = [value for value in given.values() if isinstance(value, Path)]
    assert used and all(any(path.is_relative_to(place) for place in mounted) for path in used)
    assert (ROOT / "models" / given["bundle"].name / "bundle.json").is_file()
    assert given["host"] == "0.0.0.0" and (given.get("allow") or given.get("token_file"))


def test_archive_and_node_know_each_other() -> None:
    node, archive = parameters("node"), SERVICES["orthanc"]["environment"]
    [(_, (title, host, port))] = json.loads(archive["ORTHANC__DICOM_MODALITIES"]).items()
    assert (title, host, port) == (node["title"], "node", node["port"]) and title == Listening().title
    assert node["allow"] == [archive["ORTHANC__DICOM_AET"]]
    assert node["forward"] == f"{archive['ORTHANC__DICOM_AET']}@orthanc:4242"
    script = (DOCKER / "forward.lua").read_text(encoding="utf-8")
    assert f"'{title}'" in script and set(json.loads(archive["ORTHANC__DICOM_MODALITIES"])) == {"medsd"}


def test_the_server_is_asked_whether_it_is_ready_at_its_port() -> None:
    server, port = OURS["server"], parameters("server")["port"]
    assert f"127.0.0.1:{port}/v2/health/ready" in server["healthcheck"]["test"][-1]
    assert server["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_whatever_is_named_is_there() -> None:
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    files = {name for name in named if name.startswith(".")}
    assert named - files == set(COMPOSE["volumes"]) and all((DOCKER / name).exists() for name in files)
    assert {secret for service in SERVICES.values() for secret in service.get("secrets", ())} == set(COMPOSE["secrets"])
    assert {each for service in SERVICES.values() for each in service.get("depends_on", ())} <= set(SERVICES)
    for service in OURS.values():
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]) == DOCKER / "Dockerfile"


def test_what_the_image_copies_is_there_and_is_sent_to_the_builder() -> None:
    kept = [line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for name, words in instructions() if name == "COPY" for source in words[:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
    assert [source for source in copied if not any(fnmatch(source, pattern) for pattern in kept)] == []
    made = {path for name, words in instructions() if name == "RUN" for path in words if path.startswith("/")}
    volumes = [volume.split(":")[1] for service in OURS.values() for volume in service["volumes"] if volume[0] != "."]
    assert set(volumes) <= made  # and so belong to the user who runs medsd
    assert ("ENTRYPOINT", ["[medsd]"]) in instructions() and ("USER", ["medsd"]) in instructions()

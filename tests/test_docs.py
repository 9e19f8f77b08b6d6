"""README and docs: they build, their examples run as they stand, and their commands are those of medsd.

A fenced block of commands or Python runs, unless its title says what it needs (``title="needs data: ..."``). A block
whose title is a file name is written to that file, for the blocks after it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from medsd.cli import app, main
from medsd.settings import load_gate, load_settings

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"needs .*(GPU|cluster|data|network)")
SHORTER = {  # what only takes long, made small
    "count=200, seed=0, size=256": "count=48, seed=0, size=64",
    "pixels: {size: 192,": "pixels: {size: 64,",
    "pretrain: {epochs: 8,": "pretrain: {epochs: 1,",
    "finetune: {epochs: 10,": "finetune: {epochs: 2,",
}
GATED = ("score", "similar", "app", "suggest", "report", "receive", "serve")
SERVERS = {"medsd app": "", "medsd serve": "v2"}  # and what they are asked for
VISITED: set[str] = set()  # of several pages with the same command, one starts the server


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether nothing is needed that a test cannot have."""
        return not NEEDS.match(self.title)


def blocks(page: Path) -> list[Block]:
    return [Block(page, *found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> Iterator[str]:
    """The commands of a block of the shell, without comments; continued lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if command := re.sub(r"(^|\s)#.*", "", line).strip():
            yield command


EVERY = [block for page in PAGES for block in blocks(page)]
RUN = [page for page in PAGES if any(block.runs and block.language in ("sh", "python") for block in blocks(page))]
TOLD = sorted({command for block in EVERY if block.language == "sh" for command in commands(block)})


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder from which the commands of the documents run, as from that of the repository."""
    for name in ("models", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name, call in {"medsd": "-m medsd.cli", "python": ""}.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return tmp_path


def environment(desk: Path) -> dict[str, str]:
    path = f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MEDSD_KEY": "a key for the tests of medsd"}


@pytest.mark.parametrize("page", RUN, ids=names)
def test_the_examples_of_a_page_run_as_they_stand(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, str]] = []
    visits = []
    for block in blocks(page):
        if block.title.endswith((".yaml", ".csv")) and "/" not in block.title:
            steps.append((block.title, block.text))
        elif block.runs and block.language == "python":
            steps.append(("python", block.text))
        elif block.runs and block.language == "sh":
            for command in commands(block):
                (visits if command.startswith(tuple(SERVERS)) else steps).append(("sh", command))
    for long, short in SHORTER.items():
        steps = [(kind, text.replace(long, short)) for kind, text in steps]
    monkeypatch.chdir(desk)
    for name, value in environment(desk).items():
        monkeypatch.setenv(name, value)
    if any(re.search(r"medsd train|--engine ray", text) for _, text in steps):  # they change the process for good
        result = subprocess.run(
            [sys.executable, "-m", "tests.test_docs"],
            input=json.dumps(steps),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    else:
        monkeypatch.setattr("sys.argv", sys.argv)
        play(steps)
    for _, command in visits:
        if command not in VISITED:
            visit(command, desk)
            VISITED.add(command)


def play(steps: list[tuple[str, str]]) -> None:
    """Run the steps of a page in this one process, which has to import medsd only once."""
    for kind, text in steps:
        print(f"--- {kind}: {text}", flush=True)
        if kind == "python":
            exec(compile(text, "example", "exec"), {"__name__": "example"})
        elif kind == "sh" and text.startswith("medsd ") and not re.search(r"[|>&;]", text):
            sys.argv = shlex.split(text)
            try:
                main()
            except SystemExit as end:
                assert not end.code, text
        elif kind == "sh":
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
        else:
            Path(kind).write_text(text, encoding="utf-8")


def visit(command: str, desk: Path) -> None:
    """Start a server, and ask for its page."""
    port = free_port()
    arguments = [sys.executable, "-m", "medsd.cli", *shlex.split(command)[1:], "--port", str(port)]
    with subprocess.Popen(arguments, cwd=desk, env=environment(desk), stdout=subprocess.DEVNULL) as process:
        try:
            page = SERVERS[" ".join(command.split()[:2])]
            assert "medsd" in answer(f"http://127.0.0.1:{port}/{page}", process)
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answer(url: str, process: subprocess.Popen[bytes]) -> str:
    """What stands at `url`, as soon as the process serves it."""
    end = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                return page.read().decode()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url}: no answer")


@pytest.mark.parametrize("command", [command for command in TOLD if re.search(r"(^|[/ ])medsd ", command)])
def test_every_command_fits_the_verbs_and_the_settings(command: str) -> None:
    words = shlex.split(re.split(r"(?:^|[/| ])medsd ", command, maxsplit=1)[1])
    verb: Any = typer.main.get_command(app)
    while hasattr(verb, "commands"):
        verb = verb.commands[words.pop(0)]
    context = verb.make_context(verb.name, words)  # raises where an option or an argument does not fit
    overrides = context.params.get("overrides") or context.params.get("gate_set") or []
    config = context.params.get("config")
    if verb.name in GATED and not config:
        load_gate(None, overrides)
    elif config and (ROOT / config).is_file() and "data:" in (ROOT / config).read_text(encoding="utf-8"):
        load_settings(ROOT / config, overrides)


@pytest.mark.parametrize(
    "block", [block for block in EVERY if block.language == "yaml"], ids=lambda one: names(one.page)
)
def test_a_piece_of_a_configuration_fits_the_settings(block: Block) -> None:
    load_settings(ROOT / "configs" / "own.yaml", [f"{key}={json.dumps(value)}" for key, value in keys(block.text)])


def keys(text: str) -> Iterator[tuple[str, object]]:
    """Every value of a YAML text with its path, a.b.c."""
    ahead: list[tuple[str, object]] = [("", yaml.safe_load(text))]
    while ahead:
        path, value = ahead.pop()
        if isinstance(value, Mapping) and not path.endswith(("finding_names", "finding_columns")):
            ahead += [(f"{path}.{name}".lstrip("."), each) for name, each in value.items()]
        else:
            yield path, value


def test_every_block_of_commands_has_a_language() -> None:
    assert [block.page.name for block in EVERY if block.language not in ("sh", "python", "yaml")] == []


def test_every_mark_says_what_is_needed() -> None:
    assert [block.title for block in EVERY if block.title.startswith("needs") and block.runs] == []


def test_the_readme_is_short_and_every_file_that_it_links_to_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_make_has_the_goals_of_the_documents() -> None:
    goals = {word for command in TOLD if command.startswith("make ") for word in command.split()[1:2]}
    assert {"app", "test", "docs"} <= goals
    for goal in goals:
        subprocess.run(["make", "--dry-run", goal], cwd=ROOT, check=True, capture_output=True)


def test_the_documentation_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, env={**environment(tmp_path), "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    loaded = re.compile(r"<(?:script|img|iframe)[^>]* src=\"?https?:|<link[^>]*stylesheet[^>]*href=\"?https?:")
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    assert [page.name for page, text in pages.items() if loaded.search(text)] == []
    assert "&lt;!-- generate" not in "".join(pages.values())


def test_the_reference_has_every_verb_and_every_setting_with_a_description() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        from generate import PARTS
    finally:
        sys.path.remove(str(DOCS))
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    told = PARTS["commands"]()
    assert [verb for verb in verbs if f"## medsd {verb}\n" not in told] == []
    undescribed = re.findall(r"^\| (`\w+`) \|  \|", PARTS["settings"](), flags=re.MULTILINE)
    assert undescribed == []


if __name__ == "__main__":
    play(json.load(sys.stdin))

"""Nothing that medsd runs looks up a name, connects beyond this machine, or writes outside of what it was given.

Whole runs are recorded (`tests.recorder`): scoring here and on Ray, the app, the verbs of cases; a training with its
index is in `tests.test_canary`. The last tests show that the recorder sees what it must: a call by hand, and ONNX
Runtime's own report.
"""

from __future__ import annotations

import ast
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from medsd import telemetry
from tests.recorder import ROOT, Record, missing, record

BUNDLE = ROOT / "models" / "phantom"
IMAGES = sorted((BUNDLE / "examples").glob("*.dcm"))[:3]
EVENTS_HOST = "mobile.events.data.microsoft.com"
recorded = pytest.mark.skipif(bool(missing()), reason=f"nothing can be recorded here: {missing()}")


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short name: Ray keeps sockets in it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _assert_quiet(seen: Record, root: Path) -> None:
    assert seen.status == 0, seen.said[-2000:]
    assert (seen.lookups, seen.connections) == (set(), set())
    home, temporary = root / "home", root / "tmp"
    own = [home / ".cache" / "medsd", home / ".config" / "medsd"]
    above = {str(folder) for folder in (home / ".cache", home / ".config")}
    outside = seen.written_outside(root / "work", temporary, *own)
    assert set(outside) <= above, outside
    assert list(temporary.iterdir()) == []
    assert seen.threads > 0


@recorded
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_scoring_on_ray_is_quiet(root: Path) -> None:
    """Twice in one process: the second Ray is another."""
    outs = [root / "work" / name for name in ("one.csv", "two.csv")]
    verbs = [["score", BUNDLE, *IMAGES, "--out", out, "--engine", "ray"] for out in outs]
    _assert_quiet(record(_one_after_another(verbs), root), root)
    assert outs[0].read_bytes() == outs[1].read_bytes()


@recorded
def test_a_visit_to_the_app_is_quiet(root: Path) -> None:
    pytest.importorskip("gradio")
    _assert_quiet(record([sys.executable, "-m", "tests.app_visit", str(BUNDLE), *map(str, IMAGES)], root), root)


@recorded
def test_scoring_and_the_verbs_of_cases_are_quiet(root: Path) -> None:
    """They run in one process, in a folder of their own copy."""
    bundle, out = root / "work" / "bundle", root / "work" / "out.csv"
    shutil.copytree(BUNDLE, bundle)
    verbs = [["score", bundle, *IMAGES, "--out", out, "--workers", "2"]]
    verbs += [["similar", bundle, IMAGES[0], "-k", "3"], ["cases", "info", bundle], ["cases", "compact", bundle]]
    verbs += [["cases", "export", bundle, "--out", root / "work" / "cases.parquet"], ["doctor"]]
    if find_spec("rapidocr") is not None:
        verbs.append(["deidentify", IMAGES[0], "--out", root / "work" / "clean"])
    _assert_quiet(record(_one_after_another(verbs), root), root)
    assert out.stat().st_size > 0


_ONE_AFTER_ANOTHER = """
import ast, sys
from medsd.cli import main
for arguments in ast.literal_eval(sys.argv[1]):
    sys.argv = ["medsd", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""


def _one_after_another(verbs: list[list[object]]) -> list[str]:
    return [sys.executable, "-c", _ONE_AFTER_ANOTHER, repr([list(map(str, verb)) for verb in verbs])]


# ---- the recorder sees


_CALLS = """
import pathlib, socket, sys
for call, address in ((socket.getaddrinfo, ("medsd.example", 443)), (socket.create_connection, (("192.0.2.1", 9),))):
    try:
        call(*address)
    except OSError as error:
        print(type(error).__name__)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "note.txt").write_text("x")
"""


@recorded
def test_the_recorder_sees_a_lookup_a_connection_and_a_file(root: Path) -> None:
    seen = record([sys.executable, "-c", _CALLS, str(root / "elsewhere")], root)
    assert seen.said.split() == ["gaierror", "OSError"]  # refused
    assert seen.lookups == {"medsd.example"} and seen.connections == {"192.0.2.1 port 9"}
    assert seen.written_outside(root / "work") == [str(root / "elsewhere"), str(root / "elsewhere" / "note.txt")]
    with pytest.raises(AssertionError, match=r"medsd\.example"):
        _assert_quiet(seen, root)


def _reports() -> bool:
    """Whether the ONNX Runtime that is installed has code that reports."""
    [package] = find_spec("onnxruntime").submodule_search_locations  # found, not imported
    [library] = Path(package, "capi").glob("onnxruntime_pybind11_state*")
    with library.open("rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as code:
        return code.find(b"ORT_DISABLE_TELEMETRY") >= 0


reporting = pytest.mark.skipif(not _reports(), reason="this ONNX Runtime has no code that reports")
_LATE_S = "75"  # the first look-up comes after half a minute or so
_READ = """
import sys, time
from medsd import Bundle, Predictor
print(Predictor(Bundle.open(sys.argv[1]))(sys.argv[2]).status)
time.sleep(float(sys.argv[3]))
"""
_WITHOUT_THE_SWITCH = f"""
import os
from medsd import telemetry
telemetry.stop_reports = lambda: None
del os.environ["ORT_DISABLE_TELEMETRY"]
{_READ}"""


def _python(code: str, seconds: str) -> list[str]:
    return [sys.executable, "-c", code, str(BUNDLE), str(IMAGES[0]), seconds]


@recorded
@reporting
def test_without_the_switch_onnxruntime_marks_the_machine(root: Path) -> None:
    seen = record(_python(_WITHOUT_THE_SWITCH, "0"), root)
    marks = {Path(path).name for path in seen.written_outside(root / "work")}
    assert "onnxruntime.db" in marks and any(name.startswith("deviceid") for name in marks)
    with pytest.raises(AssertionError, match="DeveloperTools"):
        _assert_quiet(seen, root)


@recorded
@reporting
@pytest.mark.bench
def test_without_the_switch_onnxruntime_looks_its_makers_up(root: Path) -> None:
    assert EVENTS_HOST in record(_python(_WITHOUT_THE_SWITCH, _LATE_S), root).lookups


@recorded
@pytest.mark.bench
def test_a_long_reading_is_quiet(root: Path) -> None:
    _assert_quiet(record(_python(_READ, _LATE_S), root), root)


# ---- the switches


def test_importing_medsd_sets_every_switch_over_what_was_there() -> None:
    given = os.environ | dict.fromkeys(telemetry.REPORTING_OFF, "other") | {"PYTHONPATH": str(ROOT)}
    code = f"import os, medsd; print(all(os.environ[n] == v for n, v in {telemetry.REPORTING_OFF}.items()))"
    assert subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True).stdout == "True\n"


def test_one_module_imports_onnxruntime() -> None:
    """Whoever else did could do so before the switch is set."""
    importers = {
        str(path.relative_to(ROOT))
        for folder in ("medsd",)
        for path in (ROOT / folder).rglob("*.py")
        if _imports(ast.parse(path.read_text(encoding="utf-8")), "onnxruntime")
    }
    assert importers == {"medsd/telemetry.py"}


def _imports(tree: ast.AST, package: str) -> bool:
    """Whether a module imports a package by a statement or by `import_module`."""
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom():
                names.append(node.module or "")
            case ast.Call(func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module")):
                names += [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
    return any(name.split(".")[0] == package for name in names)

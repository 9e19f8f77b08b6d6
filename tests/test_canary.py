"""A canary (`tests.canary`) goes the whole way, from her films to the page of the app, and is found in the input alone.

One run is made for all tests: in a process of its own, with a home, a temporary folder and caches of its own, and with
every library logging all that it has to say. It is recorded where that can be done (`tests.recorder`): nobody is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from PIL import Image, PngImagePlugin

from medsd.cases.index import CaseIndex
from medsd.dicom.gate import admit
from medsd.studies.manifest import Manifest
from medsd.studies.phantom import write_phantom
from tests import canary
from tests.apps.visit import Browser
from tests.canary import FAMILY, NUMBER, traces, traces_in
from tests.recorder import Record, missing, record
from tests.runs import SMALL

STUDIES, HERS = 40, 8  # the first films are hers, the rest of as many others
MISTAKES = ("finding_list=note", "columns.split=patient", "columns.image=patient")
# Runs the commands one after another as `medsd` would, with everything said aloud.
DRIVER = """
import json, logging, sys, warnings
logging.basicConfig(level=1, stream=sys.stderr)
set_level = logging.Logger.setLevel
for name in ("torch", "onnxscript", "onnx_ir"):  # megabytes about graphs
    logging.getLogger(name).setLevel(logging.WARNING)
logging.Logger.setLevel = lambda self, level: set_level(self, level) if self.name.startswith("torch") else None
warnings.simplefilter("always")
from medsd.cli import main
for arguments, status in json.loads(sys.argv[1]):
    sys.argv = ["medsd", *arguments]
    try:
        main()
        ended = 0
    except SystemExit as end:
        ended = end.code or 0
    assert ended == status, (arguments[0], ended)
"""


@dataclass(frozen=True)
class Way:
    """Where the canary came in, and all that was written behind her."""

    given: Path
    written: Path
    said: str
    seen: Record | None

    @property
    def run(self) -> Path:
        return self.written / "runs" / "canary"

    @property
    def bundle(self) -> Path:
        return self.run / "bundle"


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """prepare, pretrain, finetune, calibrate, evaluate, export, index; score in each format; similar; doctor."""
    given, written = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("written")
    config = _write_input(given, written / "runs")
    bundle, scans, out = written / "runs" / "canary" / "bundle", given / "scans", written / "tables"
    out.mkdir()
    (given / "told").mkdir()  # the table that names her files
    notes = ["--notes", str(given / "notes.csv")]
    first = str(scans / "whole.dcm")
    commands = [
        (["train", str(config)], 0),
        (["index", str(config)], 0),
        (["prepare", str(given / "tree.yaml")], 0),
        # columns that the user mistook for others
        *(
            (["prepare", str(config), "--set", f"name=mistaken-{number}", "--set", f"data.{wrong}"], 2)
            for number, wrong in enumerate(MISTAKES)
        ),
        (["score", str(bundle), first, "--out", str(out / "one.csv"), *notes], 0),
        (["score", str(bundle), str(scans), "--out", str(out / "one.csv"), "--resume", *notes], 0),
        (["score", str(bundle), str(scans), "--out", str(out / "two.parquet"), "--workers", "2", *notes], 0),
        (["score", str(bundle), str(scans), "--out", str(out / "three.jsonl"), "--batch-size", "3", "--json"], 0),
        (["score", str(bundle), str(_named(given)), "--out", str(given / "told" / "named.jsonl")], 0),
        (["similar", str(bundle), first, "--note", canary.NOTE, "--json"], 0),
        (["similar", str(bundle), first, "--note", canary.NOTE], 0),
        (["similar", str(bundle), str(scans / "lateral.dcm"), "--json"], 2),
        (["similar", str(bundle), str(_named(given) / f"{FAMILY}_raw.dcm"), "--json"], 0),
        (["doctor", "--json"], 0),
    ]
    driver, seen = [sys.executable, "-c", DRIVER, json.dumps(commands)], None
    if missing():
        done = subprocess.run(
            driver,
            env=_surroundings(written),
            cwd=written,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        status, said = done.returncode, done.stdout
    else:
        seen = record(driver, tmp_path_factory.mktemp("record"), environment=_places(written))
        status, said = seen.status, seen.said
    assert status == 0, said[max(0, said.rfind("Traceback")) :][:3000]
    assert list((written / "temporary").iterdir()) == []
    return Way(given, written, said, seen)


def _places(written: Path) -> dict[str, str]:
    """Variables by which whatever is cached, configured or put aside lands below `written`."""
    places = {"HOME": "home", "TMPDIR": "temporary", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "configuration"}
    places |= {"XDG_DATA_HOME": "data", "XDG_STATE_HOME": "state", "MPLCONFIGDIR": "plots", "HF_HOME": "hub"}
    for folder in places.values():
        (written / folder).mkdir(exist_ok=True)
    root = str(Path(__file__).parents[1])
    return {name: str(written / folder) for name, folder in places.items()} | {
        "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "always",
    }  # fmt: skip


def _surroundings(written: Path) -> dict[str, str]:
    """The environment of these tests with those places, and without their settings of medsd and Gradio."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEDSD_", "GRADIO_"))}
    return kept | _places(written)


def _write_input(given: Path, runs: Path) -> Path:
    """Films with a table and notes, scans to score, and the configuration."""
    table = write_phantom(given, count=STUDIES, seed=5, size=96)
    names = [name for name in table if table[name].dtype == float and name != "age"]
    table["findings"] = [
        "|".join(name for name in names if row[name] == 1) or "No Finding" for _, row in table.iterrows()
    ]
    table["patient"] = [f"P{row}" for row in range(STUDIES)]
    table["split"] = ["train", "train", "train", "validation", "test"] * (STUDIES // 5)
    table.loc[: HERS - 1, "patient"], table.loc[: HERS - 1, "split"] = NUMBER, "train"
    table.loc[HERS, "patient"], table.loc[HERS, "split"] = f"{NUMBER}7", "test"  # of her name, another number
    for row in range(HERS + 1):
        study = table.loc[row, "study"] = f"{canary.STUDY_UID}.{row}"
        path = given / table.loc[row, "path"]
        every = 1 if row == 0 else 60
        path.write_bytes(canary.film(path, number=table.loc[row, "patient"], study=study, every=every))
        table.loc[row, "note"] = f"{canary.NOTE} {table.loc[row, 'note']}".removesuffix(" None")
    table["note"] = [f"{note or ''} No {', no '.join(canary.HIDDEN)}.".strip() for note in table["note"]]
    table[["path", "patient", "study", "note", "age", "sex", "view", "split", "findings"]].to_csv(
        given / "studies.csv", index=False
    )
    settings = {
        "name": "canary", "findings": "phantom8", "output": str(runs),
        "data": {
            "source": "csv", "root": str(given), "finding_list": "findings",
            "columns": {"image": "path"} | {n: n for n in ("patient", "study", "note", "age", "sex", "view", "split")},
        },
        "bundle": {"thumbnails": True, "note_excerpts": True},
    }  # fmt: skip
    _merge(settings, yaml.safe_load((Path(__file__).parents[1] / "configs" / "phantom.yaml").read_text()))
    settings["network"]["note"]["mask_findings"] = True
    for override in (*SMALL, *["training.mlflow=true"] * (find_spec("mlflow") is not None)):
        key, value = override.split("=")
        *sections, last = key.split(".")
        place = settings
        for section in sections:
            place = place.setdefault(section, {})
        if sections[:1] != ["data"]:
            place[last] = yaml.safe_load(value)
    (given / "canary.yaml").write_text(yaml.safe_dump(settings))
    del settings["network"]["note"]
    tree = settings | {"name": "tree", "data": {"source": "dicom", "root": str(given / "files")}}
    (given / "tree.yaml").write_text(yaml.safe_dump(tree))
    _write_scans(given, given / table.loc[0, "path"], given / table.loc[1, "path"])
    return given / "canary.yaml"


def _merge(settings: dict, defaults: dict) -> None:
    for key in ("pixels", "network", "loss", "training", "evaluation"):
        settings.setdefault(key, defaults[key])


def _write_scans(given: Path, whole: Path, film: Path) -> None:
    scans = given / "scans"
    scans.mkdir()
    content = film.read_bytes()
    (scans / "whole.dcm").write_bytes(whole.read_bytes())
    (scans / "short.dcm").write_bytes(content[:-2000])
    (scans / "text.dcm").write_text(canary.NOTE, encoding="utf-8")
    for name, elements in {
        "lateral": {"ViewPosition": "LL"}, "modality": {"Modality": FAMILY.upper()},
        "part": {"BodyPartExamined": FAMILY.upper()}, "negative": {"PhotometricInterpretation": "MONOCHROME1"},
        "colour": {"PhotometricInterpretation": FAMILY.upper()}, "raw": {"PresentationIntentType": "FOR PROCESSING"},
    }.items():  # fmt: skip
        ds = pydicom.dcmread(film)
        for keyword, value in elements.items():
            setattr(ds, keyword, value)
        ds.save_as(scans / f"{name}.dcm")
    for number, broken in enumerate(_mutations(content, 24, seed=1)):
        (scans / f"broken_{number}.dcm").write_bytes(broken)
    told = PngImagePlugin.PngInfo()
    told.add_text("Patient", canary.NOTE, zip=True)
    Image.fromarray(pydicom.dcmread(film).pixel_array.astype(np.uint8)).save(scans / "picture.png", pnginfo=told)
    (given / "usual.dcm").write_bytes(content)
    _named(given).mkdir(parents=True)
    (_named(given) / f"{FAMILY}_{NUMBER}.dcm").write_bytes(content)
    (_named(given) / f"{FAMILY}_{NUMBER}_lateral.dcm").write_bytes((scans / "lateral.dcm").read_bytes())
    (_named(given) / f"{FAMILY}_raw.dcm").write_bytes((scans / "raw.dcm").read_bytes())
    rows = [{"path": path.name, "note": f"{canary.NOTE} {' '.join(canary.HIDDEN)}"} for path in scans.iterdir()]
    pd.DataFrame(rows).to_csv(given / "notes.csv", index=False)


def _named(given: Path) -> Path:
    """A folder of films that bears her name."""
    return given / "archive" / f"{FAMILY}, Celiandra {canary.BIRTH}"


def _mutations(content: bytes, count: int, *, seed: int) -> Iterator[bytes]:
    """`content` with a few bytes of its header changed, cut, doubled or moved."""
    draw = random.Random(seed)
    header = content.index(b"\xe0\x7f\x10\x00")  # Pixel Data in explicit or implicit little endian
    for _ in range(count):
        broken = bytearray(content)
        for _ in range(draw.randint(1, 12)):
            at, length = draw.randrange(132, header), draw.randint(1, 9)
            match draw.randrange(4):
                case 0:
                    broken[at] = draw.randrange(256)
                case 1:
                    del broken[at : at + length]
                case 2:
                    broken[at:at] = broken[at : at + length]
                case 3:
                    broken[at : at + length] = draw.randbytes(length)
        yield bytes(broken)


def test_she_is_in_the_input(way: Way) -> None:
    found = traces(way.given)
    for place in ("studies.csv", "scans/whole.dcm", "scans/picture.png", "files/", "name of archive"):
        assert any(trace.startswith(place) for trace in found), place


def test_nothing_that_was_written_has_her(way: Way) -> None:
    """Run folder, checkpoints, curves, bundle, index, tables, home, caches and temporary files."""
    kinds = {path.suffix for path in way.written.rglob("*") if path.is_file()}
    assert {".parquet", ".safetensors", ".npy", ".onnx", ".json", ".csv", ".jsonl", ".lance", ".md", ".png"} <= kinds
    assert any("tfevents" in path.name for path in way.run.rglob("*"))
    assert traces(way.written) == []


@pytest.mark.skipif(bool(missing()), reason=f"nothing can be recorded here: {missing()}")
def test_nobody_is_asked_or_told_and_nothing_is_written_elsewhere(way: Way) -> None:
    assert way.seen and (way.seen.lookups, way.seen.connections) == (set(), set())
    assert way.seen.written_outside(way.written, way.given / "told") == [] and way.seen.threads > 0
    assert (way.bundle / "cases").is_dir()


def test_nothing_that_was_said_has_her(way: Way) -> None:
    assert "DEBUG" in way.said and "prepare" in way.said and "similarity" in way.said
    said = way.said.replace(str(_named(way.given)), "")  # the input by the name that the user gave
    assert traces_in(said.encode()) == set()


def test_no_word_that_is_masked_is_kept_in_any_spelling(way: Way) -> None:
    """Manifest, vocabulary, index and all that was said; the words were disguised in every note."""
    notes = Manifest.read(way.run / "studies.parquet").table["note"].dropna().tolist()
    words = json.loads((way.bundle / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    excerpts = _excerpts(way.bundle / "cases")
    assert len(notes) == STUDIES and all("No ___, no ___, no ___, no ___, no ___." in note for note in notes)
    assert excerpts and "no" in words
    shown = " ".join([*notes, *words, *excerpts, way.said]).lower()
    for word in ("effusion", "consolidation", "oedema", "pneumothorax", *canary.HIDDEN):
        assert f"no {word}" not in shown, word
    pieces = ("effu", "solidation", "edema", "thorax", "\ufb00", "\u00ad", "\u200b", "\uff2d")
    assert [word for word in words if any(piece in word for piece in pieces)] == []


def _excerpts(index: Path) -> list[str]:
    import lancedb

    tables = [lancedb.connect(str(path.parent)).open_table(path.stem) for path in index.glob("*.lance")]
    rows = [row for table in tables for row in table.search().limit(None).to_list()]
    return [row["note_excerpt"] for row in rows if row.get("note_excerpt")]


def test_a_film_named_after_her_is_named_in_the_column_of_paths_alone(way: Way) -> None:
    rows = [json.loads(line) for line in (way.given / "told" / "named.jsonl").read_text(encoding="utf-8").splitlines()]
    statuses = {row["status"] for row in rows}
    assert "refused" in statuses and statuses & {"scored", "warned"}  # which of the two, so small a model decides
    assert all(FAMILY in row["path"] for row in rows)
    rest = [{name: value for name, value in row.items() if name != "path"} for row in rows]
    assert all(row["message"] for row in rest if row["status"] == "refused")
    assert traces_in(json.dumps(rest).encode()) == set()


def test_broken_scans_get_a_reason_and_every_table_has_every_scan(way: Way) -> None:
    count = len(list((way.given / "scans").iterdir()))
    tables = [pd.read_csv(way.written / "tables" / "one.csv"), pd.read_parquet(way.written / "tables" / "two.parquet")]
    for table in (*tables, pd.read_json(way.written / "tables" / "three.jsonl", lines=True)):
        assert len(table) == count and "refused" in set(table["status"]) and set(table["status"]) & {"scored", "warned"}
        assert table.loc[table["status"] == "refused", "reason"].notna().all()


def test_her_studies_are_told_apart_by_keys(way: Way) -> None:
    """The identities are gone, what they were good for is not."""
    table = Manifest.read(way.run / "studies.parquet").table
    assert table["patient"].nunique() == STUDIES - HERS + 1 and table["study"].nunique() == STUDIES
    assert table["patient"].str.fullmatch("[0-9a-f]{16}").all() and table["patient"].value_counts().iloc[0] == HERS
    index = CaseIndex.open(way.bundle / "cases")
    assert len(index) == len(table[table["split"] == "train"])
    scored = pd.read_parquet(way.written / "tables" / "two.parquet").set_index("path")
    assert scored["patient_key"][str(way.given / "scans" / "whole.dcm")] == table["patient"].value_counts().index[0]


def test_what_is_not_her_is_kept_of_her_notes(way: Way) -> None:
    notes = Manifest.read(way.run / "studies.parquet").table["note"].dropna()
    hers = notes[notes.str.contains("known heart failure")]
    assert len(hers) == HERS + 1 and hers.str.contains("Short of breath for three days").all()
    words = json.loads((way.bundle / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert "film" in words and "patient" in words  # of the words of many


@pytest.fixture(scope="module")
def served(way: Way) -> Iterator[tuple[Way, list[str], subprocess.Popen[str], float, str]]:
    """The app, with her film and note read in it: what it answered, without the text box, which is her own."""
    arguments = ["app", str(way.bundle), "--port", "0", "--images", str(way.given / "files")]
    log, started = way.written / "app.log", time.time() - 1
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps([(arguments, 130)])],
            env=_surroundings(way.written), cwd=way.written, stdout=subprocess.PIPE, stderr=file, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    address = re.search(r"http://[0-9.:]+", first)
    assert address, log.read_text(encoding="utf-8")[-2000:]
    answers: list[str] = []
    browser = Browser(address[0], "page")
    page, config = browser.client.get("/").text, browser.client.get("/config").text
    for film in ("whole.dcm", "lateral.dcm", "short.dcm", "broken_3.dcm"):
        content = (way.given / "scans" / film).read_bytes()
        session = hashlib.sha256(content).hexdigest()[:11]
        answers.append(_without_note(browser.read(f"{FAMILY}_{NUMBER}.dcm", content, canary.NOTE, session)))
    answers += [page, config, browser.client.get("/").text, browser.client.get("/config").text]
    yield way, answers, process, started, address[0]
    process.kill()


def _without_note(events: str) -> str:
    """The server-sent events of a reading without the echo of the note, which is her own."""
    assert "process_completed" in events and '"success":true' in events, events[-500:]
    for echo in (json.dumps(canary.NOTE)[1:-1], json.dumps(canary.NOTE, ensure_ascii=False)[1:-1], canary.NOTE):
        events = events.replace(echo, "")
    return events


def test_nothing_that_the_app_answers_has_her(served: tuple[Way, list[str], object, float, str]) -> None:
    _, answers, _, _, _ = served
    assert "data-finding" in answers[0] and "lateral" in answers[1]
    assert [traces_in(answer.encode()) for answer in answers] == [set()] * len(answers)


def test_nothing_that_the_app_leaves_has_her(served: tuple[Way, list[str], subprocess.Popen[str], float, str]) -> None:
    way, _, process, started, address = served
    assert list((way.written / "temporary").glob("medsd-app-*"))
    assert traces(way.written, since=started) == []  # while it runs
    film = way.given / "scans" / "whole.dcm"
    [left] = Browser(address, "another").upload(f"{FAMILY}.dcm", film.read_bytes()).json()
    assert Path(left).is_file() and traces_in(left.encode()) == set()  # never read, not yet swept
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert traces_in(said.encode()) == set() and traces(way.written, since=started) == []
    assert not list((way.written / "temporary").glob("medsd-app-*"))


def test_no_message_of_200_broken_headers_quotes_her(
    way: Way, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (way.given / "usual.dcm").read_bytes()
    caplog.set_level(1)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        told = [admit(broken, name=f"film {number}") for number, broken in enumerate(_mutations(content, 200, seed=2))]
    pydicom.config.debug(True)  # it then logs every element that it reads
    try:
        told += [admit(broken) for broken in _mutations(content, 5, seed=3)]
    finally:
        pydicom.config.debug(False)
    text = repr([(item, item.radiograph) for item in told]) + repr([str(item.message) for item in warned])
    assert len({item.reason for item in told}) >= 3
    assert traces_in((text + caplog.text + "".join(capfd.readouterr())).encode()) == set()

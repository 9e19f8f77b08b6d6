"""The scorer on a local Ray: the rows of the local engine, whatever is killed or interrupted."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from medsd.bundle.layout import Bundle
from medsd.errors import DataError, DependencyError
from medsd.privacy import KeyedHasher
from medsd.scoring import batch, by_study, cluster, request
from medsd.scoring.cluster import Plan
from medsd.scoring.request import ScoringRequest
from medsd.scoring.segments import Block
from tests.mutants import generated_films

WORKERS = 2
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'medsd[cluster]'")


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A Ray of two workers that decode and one that reads, on the loopback address; its folder is that of the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("desk"))
        patched.setenv("RAY_worker_niceness", "0")  # its default stands back behind everything else
        with cluster.connected(cluster.LOCAL, WORKERS) as ray:
            yield ray


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Generated DICOM films, each whole and cut short, and a file that is none."""
    folder = tmp_path / "many"
    folder.mkdir()
    for name, content in generated_films().items():
        (folder / f"{name}.dcm").write_bytes(content)
        (folder / f"{name}-cut.dcm").write_bytes(content[: len(content) * 2 // 3])
    (folder / "none.dcm").write_bytes(b"no film")
    return folder


def _workers() -> list[int]:
    """Ray's worker processes of this process that run a stage."""
    parents, found = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if place.joinpath("cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(place.name))
        except (OSError, ValueError):
            continue

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process > 1 and is_ours(parents.get(process, 0)))

    return [process for process in found if is_ours(process)]


def _at_the_first_block(patched: pytest.MonkeyPatch, act) -> list[int]:
    """Do `act` once when the first block is finished; returns what is told of the blocks after it."""
    counts: list[int] = []
    advance = request.Progress.advance

    def acting(self, count: int = 1, note: str = "") -> None:
        counts.append(count)
        advance(self, count, note)
        if len(counts) == 1:
            act()

    patched.setattr(request.Progress, "advance", acting)
    return counts


@needs_ray
def test_two_workers_give_the_rows_of_the_local_engine_over_real_and_generated_films(
    ray, image_bundle: Bundle, many: Path, data_root: Path, tmp_path: Path, hasher: KeyedHasher
):
    shutil.copytree(data_root / "dicom", tmp_path / "real", ignore=shutil.ignore_patterns("*.csv"))
    given = [tmp_path / "real", many]
    here, there = tmp_path / "here", tmp_path / "there"
    local = batch.score(
        ScoringRequest(
            image_bundle, given, here.with_suffix(".csv"), embeddings=here.with_suffix(".npy"), workers=2, hasher=hasher
        )
    )
    summary = cluster.score(
        ScoringRequest(
            image_bundle,
            given,
            there.with_suffix(".csv"),
            embeddings=there.with_suffix(".npy"),
            workers=2,
            hasher=hasher,
        )
    )
    assert summary.inputs == local.inputs > 18 and summary.reasons == local.reasons and summary.refused > 8
    for suffix in (".csv", ".npy"):
        assert there.with_suffix(suffix).read_bytes() == here.with_suffix(suffix).read_bytes()
    assert not there.with_name("there.csv.parts").exists()


@needs_ray
def test_an_interrupted_run_goes_on_and_outlives_its_killed_workers(
    ray, image_bundle: Bundle, many: Path, tmp_path: Path, hasher: KeyedHasher
):
    def interrupt() -> None:
        raise KeyboardInterrupt

    def kill() -> None:
        killed.extend(_workers())
        for process in killed:
            os.kill(process, signal.SIGKILL)

    # Blocks go through fsspec, which is given another name for this file system.
    killed: list[int] = []
    out, url = tmp_path / "out.csv", f"local://{tmp_path}/out.csv"
    batch.score(ScoringRequest(image_bundle, [many], tmp_path / "whole.csv", hasher=hasher))
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        _at_the_first_block(patched, interrupt)
        cluster.score(ScoringRequest(image_bundle, [many], url, workers=WORKERS, batch_size=2, hasher=hasher))
    kept = len(list(tmp_path.glob("out.csv.parts/block-*.jsonl")))
    assert kept >= 1 and not out.exists()
    with pytest.MonkeyPatch.context() as patched:
        counts = _at_the_first_block(patched, kill)
        summary = cluster.score(
            ScoringRequest(image_bundle, [many], url, workers=WORKERS, batch_size=2, hasher=hasher, resume=True)
        )
    assert killed and len(counts) > 2
    assert summary.reused >= 2 * kept and sum(counts) == summary.inputs - summary.reused
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@needs_ray
def test_both_engines_give_the_same_studies(
    ray, image_bundle: Bundle, studies: Path, tmp_path: Path, hasher: KeyedHasher
):
    for name in ("=1+1.dcm", "lone\rreturn.dcm", 'a "quote", comma.dcm', "line\nfeed.dcm"):
        (studies / name).write_bytes((studies / "c_ap.dcm").read_bytes())
    shutil.copytree(studies, ".", dirs_exist_ok=True)
    names = [Path("./*.dcm"), Path("=1+1.dcm")]  # names as they are given are what a spreadsheet would run
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    asked = ScoringRequest(image_bundle, names, here, workers=WORKERS, hasher=hasher, defuse_formulas=True)
    local = by_study.score(batch.score, asked)
    summary = by_study.score(cluster.score, replace(asked, out=f"local://{there}"))
    assert summary.studies == local.studies == 3 and there.read_bytes() == here.read_bytes()
    images = [path.with_name(f"{path.stem}.images.csv") for path in (here, there)]
    assert images[0].read_bytes() == images[1].read_bytes()
    with images[0].open(newline="") as file:
        read = [row["path"] for row in csv.DictReader(file)]
    assert read == pd.read_csv(images[0])["path"].tolist() and len(read) == 12
    assert "'=1+1.dcm" in read and "lone\rreturn.dcm" in read
    assert by_study.score(batch.score, replace(asked, resume=True)).reused == 12


@needs_ray
def test_what_a_worker_raises_is_said_in_its_own_words(
    ray, image_bundle: Bundle, films: Path, tmp_path: Path, hasher: KeyedHasher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster, "_files", lambda bundle: {})  # no worker can open such a bundle
    request = ScoringRequest(image_bundle, [films], tmp_path / "out.csv", workers=WORKERS, hasher=hasher)
    with pytest.raises(DataError, match="no bundle here"):
        cluster.score(request)


@needs_ray
def test_local_ray_listens_on_the_loopback_address_and_tells_nobody(ray):
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_without_ray_one_line_says_what_to_install(image_bundle: Bundle, films: Path, tmp_path: Path):
    code = "import sys; sys.modules['ray'] = None; from medsd.cli import main; main()"
    words = ["score", image_bundle.folder, films, "--out", tmp_path / "out.csv", "--engine", "ray"]
    run = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == "medsd: --engine ray needs Ray; install it with: pip install 'medsd[cluster]'\n"
    assert not (tmp_path / "out.csv.parts").exists()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_address_where_nobody_listens_is_found_out_at_once(form: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            cluster._knock(form.format(taken.getsockname()[1]))


@pytest.mark.parametrize("address", ["local", "auto"])
def test_addresses_that_ray_finds_by_itself_are_left_to_it(address: str):
    cluster._knock(address)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "plan"),
    [
        (8, 0, None, Plan(4, 4, False, 1.0, "cpu")),
        (3, 0, 2, Plan(2, 1, False, 1.0, "cpu")),
        (1, 0, None, Plan(1, 1, False, 0.5, "cpu")),
        (64, 8, None, Plan(56, 8, True, 1.0, "auto")),
        (64, 8, 16, Plan(16, 8, True, 1.0, "auto")),
        (4, 8, None, Plan(1, 8, True, 0.444, "auto")),
    ],
)
def test_one_actor_a_gpu_reads_and_else_processors_do(cpus: int, gpus: int, workers: int | None, plan: Plan):
    assert cluster._plan({"CPU": cpus, "GPU": gpus}, workers, "auto", False) == plan


def test_a_gpu_that_is_required_must_be_in_the_cluster():
    with pytest.raises(DependencyError, match="the Ray cluster has none"):
        cluster._plan({"CPU": 4}, None, "auto", True)


def test_urls_and_paths_keep_the_order_in_which_they_were_given(films: Path, tmp_path: Path):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/bucket/a.dcm", b"1")
    (tmp_path / "list.txt").write_text("s3://bucket/named.dcm\n")
    given = [films / "film_1.png", Path("memory://bucket"), films / "film_0.png"]
    found = request._name(ScoringRequest("", given, "out.csv", lists=[tmp_path / "list.txt"]), [], urls=True)
    assert found.names == [
        str(films / "film_1.png"), "memory://bucket/a.dcm", str(films / "film_0.png"), "s3://bucket/named.dcm"
    ]  # fmt: skip


def test_notes_belong_to_films_behind_urls(fused_bundle: Bundle, tmp_path: Path, hasher: KeyedHasher):
    (tmp_path / "list.csv").write_text("path,note\ns3://bucket/a.dcm,cough\ns3://bucket/b.dcm,\n")
    asked = ScoringRequest(fused_bundle, [], tmp_path / "out.csv", lists=[tmp_path / "list.csv"], hasher=hasher)
    job = request.prepare(asked, urls=True)
    (block,) = cluster.with_notes([Block(job.names)], job.notes)
    assert block.names == ["s3://bucket/a.dcm", "s3://bucket/b.dcm"]
    assert block.notes == {"s3://bucket/a.dcm": "cough"}


def test_notes_beside_films_are_not_looked_for_behind_urls(fused_bundle: Bundle, tmp_path: Path):
    (tmp_path / "list.txt").write_text("s3://bucket/a.dcm\n")
    with pytest.raises(DataError, match="not behind URLs; give --notes"):
        request.prepare(
            ScoringRequest(fused_bundle, [], tmp_path / "out.csv", lists=[tmp_path / "list.txt"], side_notes=True),
            urls=True,
        )


def test_a_worker_is_sent_what_reading_needs_of_a_bundle(image_bundle: Bundle):
    files = cluster._files(image_bundle)
    assert {"bundle.json", "model.onnx"} <= set(files)
    assert not any(name.startswith(("weights/", "cases/")) for name in files)

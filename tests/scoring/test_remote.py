from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from medsd.errors import DataError, DependencyError, ImageError
from medsd.scoring.remote import Store, download, fetch, file_system, names_at, place_of, upload, url_of


@pytest.fixture
def bucket() -> str:
    """A folder of an object store in memory, with films, what is none, and what is hidden."""
    files, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    for path in ("b.dcm", "a.dcm", "deeper/c.dcm", ".hidden/d.dcm", "table.csv", "out.csv.parts/block-1.jsonl"):
        files.pipe_file(f"/{name}/{path}", b"film")
    return f"memory://{name}"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        (Path("s3://bucket/a b.dcm"), "s3://bucket/a b.dcm"),
        ("S3://bucket/a.dcm", "s3://bucket/a.dcm"),
        (Path("local:///data/a.dcm"), "local:///data/a.dcm"),
        ("/data/a.dcm", None),
        ("c:/data/a.dcm", None),
        ("films.zip!a:/b.dcm", None),
    ],
)
def test_a_url_is_told_from_a_path(path: Path | str, url: str | None):
    assert url_of(path) == url


def test_file_urls_are_paths():
    assert place_of("file:///data/a.dcm") == Path("/data/a.dcm")
    assert place_of(Path("s3://bucket")) == "s3://bucket/" or place_of(Path("s3://bucket")) == "s3://bucket"


def test_a_folder_is_its_films_in_order(bucket: str):
    assert names_at(bucket) == [f"{bucket}/a.dcm", f"{bucket}/b.dcm", f"{bucket}/deeper/c.dcm"]


def test_a_pattern_and_a_file_are_what_they_name(bucket: str):
    assert names_at(f"{bucket}/*.dcm") == [f"{bucket}/a.dcm", f"{bucket}/b.dcm"]
    assert names_at(f"{bucket}/table.csv") == [f"{bucket}/table.csv"]


def test_what_is_not_there_is_said_in_one_line(bucket: str):
    with pytest.raises(DataError, match="does not exist; give a file"):
        names_at(f"{bucket}/none")
    with pytest.raises(DataError, match="the pattern matches no file"):
        names_at(f"{bucket}/*.png")


def test_a_store_without_its_package_and_an_unknown_one_are_told_apart(monkeypatch):
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(DataError, match="qq://bucket: cannot be opened"):
        file_system("qq://bucket")
    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(DependencyError, match="Install s3fs to access S3; install it here and on every machine"):
        file_system("s3://bucket")


def test_files_are_read_up_to_a_limit(bucket: str):
    assert fetch(f"{bucket}/a.dcm", 4) == b"film"
    for url, most, reason in ((f"{bucket}/a.dcm", 3, "too_large"), (f"{bucket}/none", 9, "file_error")):
        with pytest.raises(ImageError) as caught:
            fetch(url, most)
        assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["path", "memory", "local"])
def test_a_store_keeps_files_whole(kind: str, tmp_path: Path):
    store = Store(
        {"path": tmp_path / "s", "memory": f"memory://{uuid.uuid4().hex}", "local": f"local://{tmp_path}/s"}[kind]
    )
    assert store.names() == set()
    store.write("a", b"1")
    store.write("a", b"2")
    store.write("b", b"3")
    assert (store.names(), store.read("a")) == ({"a", "b"}, b"2")
    store.remove(["a", "b", "c"])
    store.remove_folder()
    assert store.names() == set() and not (tmp_path / "s").exists()
    with pytest.raises(OSError):
        store.read("a")


@pytest.mark.parametrize("scheme", ["memory", "local"])
def test_files_go_up_and_down(scheme: str, tmp_path: Path):
    (tmp_path / "here").write_bytes(b"table")
    url = f"{scheme}://{tmp_path}/up/table.csv"
    assert not download(url, tmp_path / "back")
    upload(tmp_path / "here", url)
    assert download(url, tmp_path / "back") and (tmp_path / "back").read_bytes() == b"table"
    if scheme == "local":
        assert [path.name for path in (tmp_path / "up").iterdir()] == ["table.csv"]

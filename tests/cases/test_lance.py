"""The table on disk: atomic writes, removal without remains, readers beside a writer."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from medsd.cases.case import Case
from medsd.cases.index import CaseIndex, create_index
from medsd.cases.lance import LanceIndex
from medsd.errors import BundleError, DataError
from medsd.findings import finding_set
from tests.cases.conftest import MODEL, N

CANARY = "canary-7f31c9"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


PICTURE = np.random.default_rng(9).bytes(3000)  # as little compressible as a WebP
VECTOR = np.random.default_rng(8).normal(size=16).astype(np.float32)
VECTOR /= np.linalg.norm(VECTOR)


def canary_case(findings) -> Case:
    labels = np.zeros(len(findings), np.float32)
    return Case("canarystudy", "canarypatient", labels, thumbnail=b"canarypixels" + PICTURE, note_excerpt=CANARY)


def remains(folder: Path) -> list[str]:
    """Words, any 16 bytes of the picture and any number of the embedding, wherever they stand."""
    pieces = [PICTURE[i : i + 16] for i in range(0, 2992, 400)] + [VECTOR[i : i + 2].tobytes() for i in range(0, 16, 2)]
    words = (CANARY.encode(), b"canarystudy", b"canarypatient", b"canarypixels", *pieces)
    return [f"{word!r} in {path.name}" for path in files(folder) for word in words if word in path.read_bytes()]


def test_a_removed_patient_leaves_no_byte_in_any_file(tmp_path, cases, embeddings, findings):
    """One file with one marked row in 120 is what LanceDB's own compaction would leave as it is."""
    stored = [*cases[:60], canary_case(findings), *cases[60:]]
    vectors = np.insert(embeddings, 60, VECTOR, axis=0)
    index = create_index(tmp_path / "c", stored, vectors, model_sha256=MODEL, findings=findings)
    index.nearest(vectors[60], 1)
    assert len(remains(tmp_path)) == 4 + 8 + 8  # what is looked for is there before, uncompressed
    assert index.remove_patient("canarypatient") == 1
    assert remains(tmp_path) == []
    assert len(index) == N
    assert "canarystudy" not in index.table()["study_key"].tolist()
    assert {hit.case.study_key for hit in index.nearest(vectors[60], 200)} == {case.study_key for case in cases}


def test_unknown_labels_of_many_findings_are_kept_as_unknown(tmp_path, embeddings):
    """LanceDB takes ten numbers or more for a vector, in which it refuses NaN."""
    findings = finding_set("nih14")
    labels = np.random.default_rng(3).choice([0, 1, np.nan], (N, len(findings))).astype(np.float32)
    stored = [Case(f"s{row:03d}", f"p{row:03d}", each) for row, each in enumerate(labels)]
    index = create_index(tmp_path / "c", stored[:60], embeddings[:60], model_sha256=MODEL, findings=findings)
    index.add(stored[60:], embeddings[60:])
    index.remove_patient("p005")
    table = index.table().set_index("study_key").sort_index()
    np.testing.assert_array_equal(table[list(findings)].to_numpy(), np.delete(labels, 5, axis=0))
    (hit,) = index.nearest(embeddings[7], 1)
    np.testing.assert_array_equal(hit.case.labels, labels[7])


def test_an_added_and_removed_patient_leaves_no_byte_either(index, tmp_path, findings):
    other = CaseIndex.open(tmp_path / "cases")
    index.add([canary_case(findings)], np.eye(1, 16, dtype=np.float32))
    assert other.nearest(np.eye(1, 16)[0], 1)[0].case.note_excerpt == CANARY
    index.remove_patient("canarypatient")
    assert remains(tmp_path) == []
    assert other.nearest(np.eye(1, 16)[0], 1)[0].case.study_key != "canarystudy"
    assert other.description == index.description


def test_the_last_patient_can_be_removed(tmp_path, findings):
    vector = np.eye(1, 16, dtype=np.float32)
    index = create_index(tmp_path / "c", [canary_case(findings)], vector, model_sha256=MODEL, findings=findings)
    index.remove_patient("canarypatient")
    assert (len(index), index.nearest(vector[0]), remains(tmp_path)) == (0, [], [])
    index.readmit_patient("canarypatient")
    index.add([canary_case(findings)], vector)
    assert len(index.nearest(vector[0])) == 1


def test_removing_an_unknown_patient_removes_nobody_and_an_empty_key_is_refused(index):
    assert index.remove_patient("x' OR 'a' = 'a") == 0
    assert len(index) == N
    with pytest.raises(DataError, match="key"):
        index.remove_patient("")


def test_an_index_that_fails_half_way_is_never_in_place(tmp_path, cases, embeddings, findings, monkeypatch):
    monkeypatch.setattr("medsd.cases.rows.BLOCK", 10)
    broken = [*cases[:-1], Case("s", labels=np.full(len(findings), 7, np.float32))]
    with pytest.raises(DataError, match="labels are 1"):
        create_index(tmp_path / "c", broken, embeddings, model_sha256=MODEL, findings=findings)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_cases_comes_out_as_it_was(tmp_path, cases, embeddings, findings):
    def failing():
        yield cases[0]
        raise LookupError("no image")

    with pytest.raises(LookupError, match="no image"):
        create_index(tmp_path / "c", failing(), embeddings, model_sha256=MODEL, findings=findings)


def test_an_index_lives_behind_a_uri_too(tmp_path, cases, embeddings, findings):
    """file:// takes the way of an object store: no rename, no lock, LanceDB's own version number."""
    uri = (tmp_path / "c").as_uri()
    index = create_index(uri, cases, embeddings, model_sha256=MODEL, findings=findings)
    reader = CaseIndex.open(uri, model_sha256=MODEL)
    assert reader.nearest(embeddings[0], 1)[0].case.study_key == "study0000"
    index.add([canary_case(findings)], np.eye(1, 16, dtype=np.float32))
    assert reader.nearest(np.eye(1, 16)[0], 1)[0].case.study_key == "canarystudy"
    assert index.remove_patient("canarypatient") == 1
    assert remains(tmp_path) == []
    assert len(reader.nearest(np.eye(1, 16)[0], 200)) == N
    with pytest.raises(BundleError, match="exists"):
        create_index(uri, cases, embeddings, model_sha256=MODEL, findings=findings)
    with pytest.raises(BundleError, match="cannot be read"):
        CaseIndex.open((tmp_path / "nowhere").as_uri())


def test_a_replacement_that_fails_half_way_leaves_the_old_index(
    index, tmp_path, cases, embeddings, findings, monkeypatch
):
    monkeypatch.setattr("medsd.cases.rows.BLOCK", 10)
    with pytest.raises(DataError, match="119 cases for 120"):
        create_index(tmp_path / "cases", cases[:-1], embeddings, model_sha256="b" * 64, findings=findings, replace=True)
    again = CaseIndex.open(tmp_path / "cases", model_sha256=MODEL)
    assert len(again.nearest(embeddings[0], N)) == N


def test_an_index_is_replaced_only_when_asked(index, tmp_path, cases, embeddings, findings):
    with pytest.raises(BundleError, match="already"):
        create_index(tmp_path / "cases", cases, embeddings, model_sha256="b" * 64, findings=findings)
    create_index(tmp_path / "cases", cases[:5], embeddings[:5], model_sha256="b" * 64, findings=findings, replace=True)
    assert len(CaseIndex.open(tmp_path / "cases", model_sha256="b" * 64)) == 5


def test_a_reader_follows_a_replacement_of_its_own_model_and_refuses_another(
    index, tmp_path, cases, embeddings, findings
):
    index.nearest(embeddings[0])
    arguments = {"findings": findings, "replace": True}
    create_index(tmp_path / "cases", cases[:5], embeddings[:5], model_sha256=MODEL, **arguments)
    assert len(index.nearest(embeddings[0], N)) == len(index) == 5
    create_index(tmp_path / "cases", cases[:5], embeddings[:5], model_sha256="b" * 64, **arguments)
    with pytest.raises(BundleError, match="another model"):
        index.nearest(embeddings[0])


def test_a_reader_follows_a_folder_that_was_deleted_and_made_again(index, tmp_path, cases, embeddings, findings):
    index.nearest(embeddings[0])
    shutil.rmtree(tmp_path / "cases")
    create_index(tmp_path / "cases", cases[:5], embeddings[:5], model_sha256=MODEL, findings=findings)
    assert len(index.nearest(embeddings[0], N)) == 5


@pytest.mark.parametrize("wrong", ["length", "shape", "nan"])
def test_embeddings_that_are_not_of_unit_length_are_refused(tmp_path, cases, embeddings, findings, wrong):
    vectors = {"length": embeddings * 2, "shape": embeddings[:, 0], "nan": embeddings * np.nan}[wrong]
    with pytest.raises(DataError, match="embeddings"):
        create_index(tmp_path / "c", cases, vectors, model_sha256=MODEL, findings=findings)


def test_what_is_no_index_is_refused_in_a_sentence(tmp_path, cases, embeddings, findings):
    with pytest.raises(BundleError, match="no case index"):
        CaseIndex.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("x")
    with pytest.raises(BundleError, match="something else"):
        create_index(tmp_path / "photos", cases, embeddings, model_sha256=MODEL, findings=findings)


def test_a_damaged_or_foreign_table_is_refused_in_a_sentence(index, tmp_path):
    import lancedb

    lancedb.connect(str(tmp_path / "foreign")).create_table("cases", [{"a": 1}])
    with pytest.raises(BundleError, match="no case index of medsd"):
        CaseIndex.open(tmp_path / "foreign")
    for path in files(tmp_path / "cases" / "cases.lance" / "_versions"):
        path.write_bytes(b"garbage")
    with pytest.raises(BundleError, match="cannot be read"):
        CaseIndex.open(tmp_path / "cases")


def test_a_newer_index_is_refused(tmp_path, cases, embeddings, findings, monkeypatch):
    monkeypatch.setattr("medsd.cases.described.SCHEMA_VERSION", 99)
    monkeypatch.setattr("medsd.cases.rows.SCHEMA_VERSION", 99)
    create_index(tmp_path / "c", cases, embeddings, model_sha256=MODEL, findings=findings)
    monkeypatch.undo()
    with pytest.raises(BundleError, match=r"schema 99.*upgrade"):
        CaseIndex.open(tmp_path / "c")


def test_reading_writes_nothing(index, tmp_path, embeddings):
    before = {path: path.stat().st_mtime_ns for path in [tmp_path / "cases", *(tmp_path / "cases").rglob("*")]}
    reader = CaseIndex.open(tmp_path / "cases", model_sha256=MODEL)
    reader.nearest(embeddings[0])
    reader.table()
    after = {path: path.stat().st_mtime_ns for path in [tmp_path / "cases", *(tmp_path / "cases").rglob("*")]}
    assert before == after


WRITER = """
import sys, numpy as np
from medsd.cases.case import Case
from medsd.cases.index import CaseIndex
index = CaseIndex.open(sys.argv[1])
F = len(index.findings)
for turn in range(12):
    vectors = np.eye(1, 16, turn, dtype=np.float32)
    index.add([Case(f"new{turn}", f"newpatient{turn}", np.zeros(F, np.float32), note_excerpt="x" * 1000)], vectors)
    if turn % 3 == 1:
        index.compact()
    if turn % 4 == 3:
        assert index.remove_patient(f"newpatient{turn}") == 1
assert index.nearest(np.eye(1, 16)[0], 1)[0].case.study_key == "new0"
print("done")
"""


def test_two_readers_answer_while_another_process_writes(index, tmp_path, embeddings, monkeypatch):
    """The writer also prunes: readers lose the files of their version under their hands."""
    monkeypatch.setattr(LanceIndex, "_pauses", (0.1,) * 300)  # however busy the machine is
    answers, problems, stop = [0, 0], [], threading.Event()

    def read(number: int) -> None:
        reader = CaseIndex.open(tmp_path / "cases")
        while not stop.is_set() or not answers[number]:
            try:
                hits = reader.nearest(embeddings[number], 3)
                assert hits[0].case.study_key == f"study{number:04d}"
                assert hits[0].case.note_excerpt == f"note {number}"
                answers[number] += 1
            except BaseException as error:
                problems.append(error)
                return

    threads = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    # It ends by itself: LanceDB's thread does not keep the process alive.
    done = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path / "cases"], capture_output=True, text=True, timeout=600
    )
    stop.set()
    for thread in threads:
        thread.join()
    assert (done.stdout.strip(), done.returncode) == ("done", 0), done.stderr
    assert problems == []
    assert min(answers) > 0
    assert len(CaseIndex.open(tmp_path / "cases")) == N + 9


def test_a_question_is_asked_again_until_the_writer_is_through(index, tmp_path, embeddings, monkeypatch):
    monkeypatch.setattr(LanceIndex, "_pauses", (0.0,) * 7)
    load, failures = LanceIndex._load, iter([True] * 7)

    def pruned_meanwhile(*arguments):
        if next(failures, False):
            raise RuntimeError("lance error: Not found: data/1.lance")
        return load(*arguments)

    monkeypatch.setattr(LanceIndex, "_load", pruned_meanwhile)
    assert CaseIndex.open(tmp_path / "cases").nearest(embeddings[0], 1)[0].case.study_key == "study0000"
    failures = iter([True] * 8)
    with pytest.raises(BundleError, match="cannot be read"):
        CaseIndex.open(tmp_path / "cases").nearest(embeddings[0], 1)


KILLED = """
import sys, numpy as np
from medsd.cases.case import Case
from medsd.cases.index import CaseIndex
index = CaseIndex.open(sys.argv[1])
labels, vectors = np.zeros(len(index.findings), np.float32), np.repeat(np.eye(1, 16, dtype=np.float32), 500, 0)
print("ready", flush=True)
while True:
    index.add([Case(f"k{i}", "k", labels, note_excerpt="x" * 2000) for i in range(500)], vectors)
"""


def test_a_writer_killed_in_the_middle_leaves_a_readable_index(index, tmp_path, embeddings):
    writer = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "cases"], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    time.sleep(0.15)
    writer.kill()
    writer.wait()
    again = CaseIndex.open(tmp_path / "cases")
    assert again.nearest(embeddings[9], 1)[0].case.study_key == "study0009"
    assert (len(again) - N) % 500 == 0
    again.remove_patient("k")  # the lock went with the process
    assert len(again) == N

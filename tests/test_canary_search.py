"""The search for the canary (`tests.canary`) can fail: it finds a leak of each kind, and none where there is none."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image, PngImagePlugin

from medsd.studies.phantom import write_phantom
from tests import canary
from tests.canary import FAMILY, NUMBER, traces


# What the search must find: each writes one leak into a folder.
def _zip_in_zip(folder: Path) -> None:
    inner, outer = io.BytesIO(), folder / "outer.docx"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("note.txt", FAMILY * 3)
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.bin", inner.getvalue())


def _picture(folder: Path) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("Title", f"{FAMILY} " * 20, zip=True)
    Image.new("L", (8, 8)).save(folder / "plot.png", pnginfo=told)


def _lance_table(folder: Path) -> None:
    import lancedb

    lancedb.connect(str(folder)).create_table("cases", [{"key": "0", "thumbnail": gzip.compress(NUMBER.encode())}])


def _graph(folder: Path) -> None:
    from onnx import TensorProto, helper, save

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["x2"], name=f"node_of_{FAMILY}")], "g", [value], [])
    save(helper.make_model(graph), folder / "model.onnx")


def _events(folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_text("note", f"of {FAMILY}")


def _pdf(folder: Path) -> None:
    stream = zlib.compress(f"BT (Patient {FAMILY}) Tj ET".encode())
    (folder / "report.pdf").write_bytes(b"%PDF-1.7\n1 0 obj <<>>\nstream\n" + stream + b"\nendstream\nendobj\n")


def _text(content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "file").write_bytes(b"some bytes " + data + b" and more")


LEAKS: dict[str, Callable[[Path], object]] = {
    "plain": _text(canary.KANA), "any case": _text("cAnArYsOn"), "utf-16": _text(FAMILY.encode("utf-16-le")),
    "shift_jis": _text(canary.KANJI.encode("shift_jis")), "number without zeros": _text("id=471102938,"),
    "date": _text("1947-02-03"), "base64": _text(b64encode(f"ab{FAMILY}c".encode())),
    "base64 of a number": _text(b64encode(b"a" + NUMBER.encode())), "hex": _text(FAMILY.encode().hex()),
    "percent": _text(quote(canary.KANJI)), "escaped": _text(ascii(canary.KANJI)), "reversed": _text(FAMILY[::-1]),
    "md5": _text(hashlib.md5(NUMBER.encode()).hexdigest()),
    "short sha1": _text(hashlib.sha1(canary.BIRTH.encode()).hexdigest()[:16]),
    "sha256 of a uid": _text(hashlib.sha256(canary.STUDY_UID.encode()).hexdigest()[:16]),
    "bytes of sha256": _text(hashlib.sha256(canary.ACCESSION.encode()).digest()),
    "gzip": lambda folder: (folder / "a.gz").write_bytes(gzip.compress(FAMILY.encode())),
    "zip in zip": _zip_in_zip, "picture": _picture, "lance": _lance_table, "graph": _graph,
    "events": _events, "pdf": _pdf,
    "npz": lambda folder: np.savez_compressed(folder / "a.npz", note=np.array([FAMILY] * 9)),
    "parquet": lambda folder: pd.DataFrame({"a": [FAMILY] * 99}).to_parquet(folder / "a.parquet", compression="zstd"),
    "file name": lambda folder: (folder / f"{FAMILY}.txt").write_text(""),
    "folder name": lambda folder: (folder / f"of {NUMBER}").mkdir(),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAKS)
def test_the_search_finds_a_leak(kind: str, tmp_path: Path) -> None:
    LEAKS[kind](tmp_path)
    assert traces(tmp_path)


def test_the_search_finds_nothing_in_the_studies_of_others(tmp_path: Path) -> None:
    write_phantom(tmp_path, count=3, seed=1, size=64).to_csv(tmp_path / "studies.csv")
    assert traces(tmp_path) == []


def test_a_header_holds_her_in_two_thousand_places() -> None:
    ds = canary.fill_header(pydicom.Dataset())
    assert len(canary.text_elements()) > 1900 and {element.VR for element in ds} >= {
        *["PN", "LO", "SH", "ST", "LT", "UT", "UC", "SQ", "DA"]
    }
    assert str(ds.PatientName) == canary.DICOM_NAME and ds.PatientName.ideographic == canary.KANJI
    assert ds.RequestAttributesSequence[0].ReferencedPatientSequence[0].PatientID == NUMBER

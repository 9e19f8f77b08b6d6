"""Mutated files: some here, 20,000 in `tests/bench/bench_mutated.py`."""

import mmap
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsd.dicom.gate import admit
from medsd.dicom.policy import REASONS, GatePolicy
from medsd.preprocessing.image import read_image
from medsd.settings import PixelSpec
from tests.mutants import MUTATIONS, Mutants, generated_films

SPEC = PixelSpec(size=64)


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return generated_films()


def _read_all(mutants: Mutants, count: int, capfd: pytest.CaptureFixture[str]) -> set[str]:
    """The reasons that `count` mutants come to; whatever else happens fails."""
    reasons = set()
    for index in range(count):
        mutant = mutants[index]
        begun = time.thread_time()  # of this thread: servers of earlier tests may still work in others
        image = read_image(mutant.content, SPEC)
        assert time.thread_time() - begun < 10, mutant
        assert image.reason in ({"", *REASONS} if image.pixels is not None else REASONS), mutant
        reasons.add(image.reason)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return reasons


def test_the_images_that_mutants_are_made_of_are_good(images: dict[str, bytes]) -> None:
    assert {name: admit(content).status for name, content in images.items()} == dict.fromkeys(images, "accepted")


def test_an_index_makes_the_same_mutant_again(images: dict[str, bytes]) -> None:
    one, other = Mutants(images, seed=5), Mutants(images, seed=5)
    assert [one[index] for index in range(60)] == [other[index] for index in reversed(range(60))][::-1]
    assert one[3].content != Mutants(images, seed=6)[3].content


def test_every_kind_of_mutation_occurs_and_changes_files(images: dict[str, bytes]) -> None:
    made = [Mutants(images, seed=5)[index] for index in range(500)]
    assert {kind for mutant in made for kind in mutant.kinds} == {mutation.__name__ for mutation in MUTATIONS}
    assert sum(mutant.content != images[mutant.origin] for mutant in made) > 450


def test_mutated_phantoms_give_an_image_or_a_reason(
    images: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    reasons = _read_all(Mutants(images, seed=7), 150, capfd)
    assert {"", "cannot_decode", "no_pixels", "not_dicom"} <= reasons


def test_mutated_real_files_give_an_image_or_a_reason(data_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    real = {path.name: path.read_bytes() for path in sorted((data_root / "dicom").glob("*.dcm"))}
    reasons = _read_all(Mutants(real, seed=7), 100, capfd)
    assert {"", "cannot_decode", "modality"} <= reasons


def test_mapped_memory_is_read_as_bytes_are(images: dict[str, bytes], data_root: Path) -> None:
    real = {path.name: path.read_bytes() for path in sorted((data_root / "dicom").glob("*.dcm"))}
    for mutants, count in ((Mutants(images, seed=9), 100), (Mutants(real, seed=9), 60)):
        for content in filter(None, (mutants[index].content for index in range(count))):
            mapped = mmap.mmap(-1, len(content))
            mapped[:] = content
            expected, found = read_image(content, SPEC), read_image(mapped, SPEC)
            assert np.array_equal(expected.pixels, found.pixels) and np.array_equal(expected.display, found.display)
            assert replace(expected, pixels=None, display=None) == replace(found, pixels=None, display=None)


def test_a_panic_of_a_decoder_in_rust_is_a_refusal(images: dict[str, bytes]) -> None:
    """RLE segments that hold more than the frame make the decoder panic, with what is no Exception."""
    content = images["rle"]
    frame = content.index(b"\xfe\xff\x00\xe0", content.rindex(b"\xe0\x7f\x10\x00") + 20) + 8
    first, second = (frame + int.from_bytes(content[frame + at : frame + at + 4], "little") for at in (4, 8))
    changed = content[:first] + b"\x81\xff" * ((second - first) // 2) + content[second:]
    assert admit(changed).reason == "cannot_decode"


@pytest.mark.parametrize("name", ["jpegls", "jpeg2000"])
def test_a_stream_too_short_for_its_size_is_refused_at_once(images: dict[str, bytes], name: str) -> None:
    content = bytearray(images[name])
    side = (10_000).to_bytes(2, "big")
    for tag in (b"\x28\0\x10\0US\x02\0", b"\x28\0\x11\0US\x02\0"):
        at = content.index(tag) + 8
        content[at : at + 2] = side[::-1]
    if name == "jpegls":
        at = content.index(b"\xff\xf7", content.rindex(b"\xe0\x7f\x10\x00")) + 5
        content[at : at + 4] = side * 2
    else:
        at = content.index(b"\xff\x4f\xff\x51") + 8
        content[at : at + 8] = (b"\0\0" + side) * 2
    begun = time.process_time()
    assert admit(bytes(content)).reason == "cannot_decode"
    assert time.process_time() - begun < 1


def test_a_group_length_does_not_hide_a_deflate_bomb(images: dict[str, bytes]) -> None:
    """The group's length points behind the bomb, at a harmless stream; pydicom inflates the bomb."""
    content = images["deflated"]
    end = 144 + int.from_bytes(content[140:144], "little")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(bytes(20_000_000)) + squeeze.flush()
    length = (end - 144 + len(bomb)).to_bytes(4, "little")
    changed = content[:140] + length + content[144:end] + bomb + content[end:]
    assert admit(changed, GatePolicy(max_file_bytes=10_000_000)).reason == "too_large"

"""Grey images that are stored in colour or in a palette are read as grey; colour is refused."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from medsd.dicom.gate import GatePolicy, admit
from tests.conftest import dx_dataset, file_bytes
from tests.dicom.test_odd_headers import in_jpeg, is_refused, is_scored


@pytest.fixture(scope="module")
def grey(chest: np.ndarray) -> np.ndarray:
    return np.rint(chest * 255).astype(np.uint8)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def coloured(samples: np.ndarray, photometric: str = "RGB", planar: int | None = 0, **elements: object) -> Dataset:
    """A DX image of three samples (H, W, 3)."""
    content = samples if planar != 1 else np.moveaxis(samples, -1, 0)
    layout = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PixelData": content.tobytes()}
    ds = dx_dataset(samples[..., 0], **{**layout, **elements})
    if planar is not None:
        ds.PlanarConfiguration = planar
    return ds


def luminance(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=-1)


@pytest.mark.parametrize("planar", [0, 1, None])
def test_grey_in_rgb_is_grey(chest: np.ndarray, grey: np.ndarray, planar: int | None) -> None:
    is_scored(coloured(three(grey), planar=planar), chest)


def test_equal_planes_without_planar_configuration_are_seen(chest: np.ndarray, grey: np.ndarray) -> None:
    planes = np.stack([grey, grey, grey]).tobytes()
    is_scored(coloured(three(grey), planar=None, PixelData=planes), chest)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_grey_in_colour_is_grey_in_every_encoding(
    chest: np.ndarray, grey: np.ndarray, syntax: str, photometric: str
) -> None:
    ds = coloured(three(grey) if photometric == "RGB" else luminance(grey), photometric)
    if syntax.is_compressed:
        ds.compress(syntax)
    ds.file_meta.TransferSyntaxUID = syntax
    is_scored(ds, chest)


def test_subsampled_chroma_is_read(chest: np.ndarray, grey: np.ndarray) -> None:
    """(0028,0004) YBR_FULL_422, native: two luminances, then both chromas (PS3.3 C.7.6.3.1.2)."""
    pairs = grey.reshape(-1, 2)
    middle = np.full(len(pairs), 128, np.uint8)
    content = np.stack([pairs[:, 0], pairs[:, 1], middle, middle], axis=-1).tobytes()
    is_scored(coloured(three(grey), "YBR_FULL_422", PixelData=content), chest)


def test_deep_rgb_is_shown_over_its_whole_range_and_without_a_window(chest: np.ndarray, grey: np.ndarray) -> None:
    is_scored(coloured(three(grey).astype(np.uint16) * 257, WindowCenter=7, WindowWidth=9), chest)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_grey_in_a_jpeg_of_three_components_is_grey(chest: np.ndarray, grey: np.ndarray, photometric: str) -> None:
    ds = in_jpeg(three(grey), SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=0)
    is_scored(ds, chest)


def test_components_are_those_of_the_stream(chest: np.ndarray, grey: np.ndarray) -> None:
    is_scored(in_jpeg(three(grey)), chest, named="(0028,0002) Samples per Pixel is 1 and taken as 3")
    ds = in_jpeg(grey, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    is_scored(ds, chest, named="(0028,0002) Samples per Pixel is 3 and taken as 1")


@pytest.mark.parametrize(
    ("elements", "named"),
    [
        ({"SamplesPerPixel": None}, "(0028,0002) Samples per Pixel is missing and taken as 3"),
        ({"SamplesPerPixel": 1}, "(0028,0002) Samples per Pixel is 1 and taken as 3"),
        ({"PhotometricInterpretation": None}, "(0028,0004) Photometric Interpretation is missing and taken as RGB"),
    ],
)
def test_missing_elements_of_rgb_are_settled(
    chest: np.ndarray, grey: np.ndarray, elements: dict[str, object], named: str
) -> None:
    is_scored(coloured(three(grey), **elements), chest, named=named)


def test_one_sample_under_rgb_is_grey(chest: np.ndarray, grey: np.ndarray) -> None:
    is_scored(dx_dataset(grey, PhotometricInterpretation="RGB"), chest, named="taken as MONOCHROME2")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_three_equal_samples_under_monochrome_are_grey(chest: np.ndarray, grey: np.ndarray, photometric: str) -> None:
    is_scored(coloured(three(grey if photometric == "MONOCHROME2" else 255 - grey), photometric), chest)


def test_colour_is_refused_and_may_be_accepted(grey: np.ndarray) -> None:
    samples = three(grey)
    samples[..., 0] //= 2
    is_refused(coloured(samples), "not_a_radiograph", "colour")
    is_refused(coloured(three(grey), "CMYK"), "not_a_radiograph", "(0028,0004)")
    radiograph = admit(file_bytes(coloured(samples)), GatePolicy(not_a_radiograph="accept")).radiograph
    assert radiograph is not None
    np.testing.assert_allclose(radiograph.pixels * 255, samples @ np.array([0.299, 0.587, 0.114]), atol=1)


def palette(
    grey: np.ndarray, entries: np.ndarray, bits: int, *, tint: float = 1.0, first: int = 0, **elements: object
) -> Dataset:
    """An image of indices into a palette whose blue is `tint` times the others."""
    ds = dx_dataset(grey, PhotometricInterpretation="PALETTE COLOR", **elements)
    for colour, of in (("Red", entries), ("Green", entries), ("Blue", (entries * tint).astype(entries.dtype))):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [len(entries), first, bits])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", of.tobytes())
    return ds


INDEX = np.arange(256)


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        ((INDEX * 257).astype("<u2"), 16),
        (INDEX.astype("u1"), 8),
        (INDEX.astype("<u2"), 8),
        (INDEX.astype("<u2"), 16),  # deeper than its entries
        ((INDEX * 257).astype("<u2"), 8),  # and shallower
    ],
)
def test_a_grey_palette_gives_the_greys(chest: np.ndarray, grey: np.ndarray, entries: np.ndarray, bits: int) -> None:
    is_scored(palette(grey, entries, bits), chest)


def test_a_palette_that_falls_and_begins_late_is_followed(chest: np.ndarray, grey: np.ndarray) -> None:
    stored = (255 - grey).astype(np.uint16) + 50
    is_scored(palette(stored, (INDEX[::-1] * 257).astype("<u2"), 16, first=50, WindowCenter=9, WindowWidth=2), chest)


def test_a_segmented_palette_is_followed(chest: np.ndarray, grey: np.ndarray) -> None:
    """One discrete segment of one entry, one linear segment (PS3.3 C.7.9.2)."""
    ds = palette(grey, (INDEX * 257).astype("<u2"), 16)
    for colour in ("Red", "Green", "Blue"):
        del ds[f"{colour}PaletteColorLookupTableData"]
        segments = np.array([0, 1, 0, 1, 255, 65535], "<u2").tobytes()
        ds.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", segments)
    is_scored(ds, chest)


def test_a_palette_of_colours_is_refused_where_they_occur(chest: np.ndarray, grey: np.ndarray) -> None:
    is_refused(palette(grey, (INDEX * 257).astype("<u2"), 16, tint=0.5), "not_a_radiograph", "palette colour")
    marked = palette(grey // 2, np.repeat(np.arange(128) * 512, 2)[::2].astype("<u2"), 16)
    assert admit(file_bytes(marked)).status == "accepted"
    is_refused(dx_dataset(grey, PhotometricInterpretation="PALETTE COLOR"), "not_a_radiograph", "without a palette")


def test_colours_of_a_palette_that_do_not_occur_do_no_harm(chest: np.ndarray, grey: np.ndarray) -> None:
    ds = palette(grey // 2, np.append(np.arange(128) * 516, [9, 9]).astype("<u2"), 16)
    ds.BluePaletteColorLookupTableData = ds.RedPaletteColorLookupTableData[:-4] + b"\xff" * 4
    is_scored(ds, chest)

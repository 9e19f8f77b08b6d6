"""From an image in any form to the square that the model sees, with the gate in between.

`read_image` never raises for bad input: an image that must not be scored is a `DecodedImage` with a reason. The result
is small enough to travel between processes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.dicom.appearance import look_concerns
from medsd.dicom.gate import Admission, GatePolicy, admit, admitted
from medsd.dicom.identity import Identity, read_identity
from medsd.dicom.policy import concern
from medsd.dicom.read import Radiograph
from medsd.preprocessing.pixels import to_pixels
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

Source = Path | str | bytes | npt.NDArray[np.floating] | Radiograph


@dataclass(frozen=True)
class DecodedImage:
    """One image behind the gate, in the words of `medsd.inference.prediction.Prediction`.

    A refused image has keys, too. They are "" where the header cannot be read or says nothing, or no hasher was given.
    """

    status: Literal["scored", "warned", "refused"]
    reason: str = ""
    message: str = ""
    name: str = ""  # how messages call it
    study_key: str = ""
    patient_key: str = ""
    instance_key: str = ""
    view: str = (
        ""  # PA, AP, FRONTAL, LATERAL, OTHER by the header; LATERAL also where it is silent and the look says so
    )
    study_keys: tuple[str, ...] = field(default=(), repr=False)  # all under which it may be a case; never shown
    patient_keys: tuple[str, ...] = field(default=(), repr=False)
    pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False)  # (S, S) for the model; None when refused
    display: npt.NDArray[np.float32] | None = field(default=None, repr=False)  # (H, W) in 0…1 for a person, if kept
    spacing_mm: tuple[float, float] | None = None  # of `display`, as in `medsd.dicom.read.Radiograph`
    spacing_from: str = ""


def read_image(
    source: Source,
    spec: PixelSpec,
    *,
    policy: GatePolicy | None = None,
    hasher: KeyedHasher | None = None,
    name: str = "",
    keep_image: bool = True,
) -> DecodedImage:
    """Gate one image and make the model's pixels of it.

    Args:
        source: a path, the content of a file, an array (H, W) in 0…1 with dark air, or a `Radiograph`.
        spec: the bundle's preprocessing.
        policy, hasher: see `GatePolicy` and `KeyedHasher`.
        name: how messages call the image; the file's name by default.
        keep_image: keep the image in its own size too, for showing it.
    """
    source = Path(source) if isinstance(source, str) else source
    name = name or (source.name if isinstance(source, Path) else "")
    admission = _admit(source, policy or GatePolicy(), name)
    if admission.radiograph is None:
        image = DecodedImage("refused", admission.reason, admission.message, name)
        return identified(image, read_identity(source), hasher) if isinstance(source, (Path, bytes)) else image
    image = DecodedImage(
        "warned" if admission.status == "warned" else "scored",
        admission.reason,
        admission.message,
        name,
        pixels=to_pixels(admission.radiograph, spec),
        display=admission.radiograph.pixels if keep_image else None,
        spacing_mm=admission.radiograph.spacing_mm,
        spacing_from=admission.radiograph.spacing_from,
    )
    return identified(image, admission.radiograph, hasher)


def _admit(source: Path | bytes | npt.NDArray[np.floating] | Radiograph, policy: GatePolicy, name: str) -> Admission:
    if isinstance(source, Radiograph):
        return admitted(source, name)
    if isinstance(source, np.ndarray):
        return _admit_array(source, policy, name)
    return admit(source, policy, name)


def _admit_array(array: npt.NDArray[np.floating], policy: GatePolicy, name: str) -> Admission:
    """Judge an array by what can be judged without a header."""
    if array.ndim != 2 or array.dtype.kind not in "fiub" or 0 in array.shape:
        detail = f"an array of shape {array.shape} and type {array.dtype}; give (H, W) grey values in 0…1"
        return _refuse("not_an_image", name, detail=detail)
    pixels = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        return _refuse("not_an_image", name, detail="grey values outside of 0…1; scale them first")
    if min(pixels.shape) < policy.min_side:
        return _refuse("too_small", name, value=f"{pixels.shape[1]} × {pixels.shape[0]}", accepted=policy.min_side)
    if pixels.min() == pixels.max():
        return _refuse("flat", name)
    concerns = look_concerns(pixels, policy)
    refused = [item for item in concerns if policy.action(item) == "refuse"]
    if refused:
        return Admission("refused", refused[0].reason, named(name, refused[0].message))
    return admitted(Radiograph(pixels, concerns=tuple(concerns)), name)


def _refuse(reason: str, name: str, **values: object) -> Admission:
    return Admission("refused", reason, named(name, concern(reason, **values).message))


def named(name: str, message: str) -> str:
    """A message that begins with the name of what it speaks of, where there is one."""
    return f"{name}: {message}" if name else message


def identified(image: DecodedImage, said: Radiograph | Identity, hasher: KeyedHasher | None) -> DecodedImage:
    """`image` with the view, and with a hasher the keys, of what its header says."""
    looks = isinstance(said, Radiograph) and any(item.setting == "lateral_look" for item in said.concerns)
    image = replace(image, view="LATERAL" if looks else said.view)
    if hasher is None:
        return image
    studies, patients = hasher.study_keys(said.study_uid), hasher.patient_keys(said.patient_id)
    return replace(
        image,
        study_key=studies[0],
        patient_key=patients[0],
        study_keys=studies,
        patient_keys=patients,
        instance_key=hasher.instance_key(said.instance_uid),
    )

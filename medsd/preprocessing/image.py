"""From an image in any form to the square that the model sees, with the gate in between.

`read_image` never raises for bad input: an image that must not be scored is a `DecodedImage` with a reason. The result
is small enough to travel between processes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medsd.dicom.content import Content
from medsd.dicom.gate import GatePolicy, admit
from medsd.dicom.identity import Identity, read_identity
from medsd.dicom.read import ImageSource, Radiograph
from medsd.preprocessing.pixels import to_pixels
from medsd.privacy import KeyedHasher
from medsd.settings import PixelSpec

Source = ImageSource | str


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
    view: str = ""  # PA, AP, FRONTAL, LATERAL, OTHER by the header; LATERAL too where only the picture's look says so
    study_keys: tuple[str, ...] = field(default=(), repr=False)  # all under which it may be a case; never shown
    patient_keys: tuple[str, ...] = field(default=(), repr=False)
    pixels: npt.NDArray[np.uint8] | None = field(default=None, repr=False)  # (S, S) for the model; None when refused
    display: npt.NDArray[np.float32] | None = field(default=None, repr=False)  # (H, W) in 0…1 for a person, if kept
    spacing_mm: tuple[float, float] | None = None  # of `display`, as in `medsd.dicom.read.Radiograph`
    spacing_from: str = ""
    ends: tuple[float, float] | None = None  # as in `medsd.dicom.greys.StoredGreys`


def read_image(
    source: Source,
    spec: PixelSpec,
    *,
    policy: GatePolicy | None = None,
    hasher: KeyedHasher | None = None,
    name: str = "",
    keep_image: bool = True,
) -> DecodedImage:
    """Gate one image, as `medsd.dicom.read.read_radiograph` takes it, and make the model's pixels of it.

    Messages call it `name`, by default as its file. With `keep_image`, it is kept in its own size too, for showing it.
    """
    source = Path(source) if isinstance(source, str) else source
    name = name or (source.name if isinstance(source, Path) else "")
    admission = admit(source, policy, name)
    if admission.radiograph is None:
        image = DecodedImage("refused", admission.reason, admission.message, name)
        return identified(image, read_identity(source), hasher) if isinstance(source, Path | Content) else image
    greys = admission.radiograph.greys
    image = DecodedImage(
        "warned" if admission.status == "warned" else "scored",
        admission.reason,
        admission.message,
        name,
        pixels=to_pixels(admission.radiograph, spec),
        display=admission.radiograph.pixels if keep_image else None,
        spacing_mm=admission.radiograph.spacing_mm,
        spacing_from=admission.radiograph.spacing_from,
        ends=greys.ends if greys else None,
    )
    return identified(image, admission.radiograph, hasher)


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

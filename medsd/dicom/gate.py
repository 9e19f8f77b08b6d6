"""The gate in front of the model: which files are scored, with which warning, and why others are not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medsd.dicom.policy import GatePolicy
from medsd.dicom.read import ImageSource, Radiograph, read_radiograph
from medsd.errors import ImageError


@dataclass(frozen=True)
class Admission:
    status: Literal["accepted", "warned", "refused"]  # "warned" is scored, with a sentence that the reader must see
    reason: str = ""  # a code of `medsd.dicom.policy.REASONS`, "" when accepted
    message: str = ""  # the sentence for the person, "" when accepted
    radiograph: Radiograph | None = field(default=None, repr=False)  # None when refused


def admit(source: ImageSource, policy: GatePolicy | None = None, name: str = "") -> Admission:
    """Read one image (`read_radiograph`) and decide about it; bad input becomes a refusal, never an exception."""
    policy = policy or GatePolicy()
    name = name or (source.name if isinstance(source, Path) else "")
    try:
        radiograph = read_radiograph(source, policy=policy, name=name)
    except ImageError as error:
        return Admission("refused", error.reason, str(error))
    if not radiograph.concerns:
        return Admission("accepted", radiograph=radiograph)
    message = " Also: ".join(item.message for item in radiograph.concerns)
    return Admission("warned", radiograph.concerns[0].reason, f"{name}: {message}" if name else message, radiograph)

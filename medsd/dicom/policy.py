"""What may be scored: the reasons for which an image is refused or warned about, and the policy that says which."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from medsd.dicom.terms import packaged
from medsd.errors import ImageError
from medsd.strict import Strict

Action = Literal["refuse", "warn", "accept"]

REASONS: Mapping[str, str] = packaged("reasons.yaml")["gate"]
"""Reason code → sentence. Codes are stable: they stand in the tables that `medsd score` writes."""


@dataclass(frozen=True)
class Concern:
    """Something that speaks against scoring an image."""

    reason: str  # a code of `REASONS`
    message: str  # the sentence for a person
    setting: str = ""  # the field of `GatePolicy` that decides about it, if that is not called as the reason

    def error(self, name: str) -> ImageError:
        """The error that refuses the image called `name`."""
        return ImageError(self.reason, f"{name}: {self.message}" if name else self.message)


def concern(reason: str, **values: object) -> Concern:
    """Fill in the sentence of `reason`; `values` never hold what identifies a patient."""
    return Concern(reason, REASONS[reason].format(**values))


class GatePolicy(Strict):
    """Which images are scored, warned about or refused.

    Attributes:
        modalities: accepted values of (0008,0060) Modality; some makers write DR, XR and RX for DX.
        body_parts: accepted words or phrases of (0018,0015) Body Part Examined, in any language and spelling; the empty
            string accepts files without one.
        min_side: shortest accepted side, pixels.
        max_pixels: most pixels that a file may declare, rows × columns × frames.
        max_frames: most frames.
        max_file_bytes: largest file that is opened, and twice the largest inflated size of a deflated one.
        max_seconds: most processor time that a helper process may take over one file before it is stopped.
        max_memory: most bytes that a helper process may hold, if the system can bound it (Linux).
        modality, body_part, frames: action for a value outside of the accepted ones.
        view: action for a lateral or oblique view that the header states.
        lateral_look: action for an image that looks lateral while its header is silent; its reason is `view`.
        not_human: action for a header that says that the patient is an animal.
        not_a_chest: action for a picture that does not look like a frontal chest.
        not_a_radiograph: action for colour; grey in RGB, YBR or a palette is grey.
        odd_header: action for a header in which something was assumed or passed over.
        turned: action for a picture that EXIF data turned.
        for_processing, burned_in, inverted_look: action for each of these.
        out_of_distribution: action for an image beyond the limit of the bundle, as about one suitable image in 200 is
            (`false_alarm_rate` in bundle.json). With ``"warn"``, images beyond twice the limit are refused too.
    """

    modalities: tuple[str, ...] = ("CR", "DX", "RG", "DR", "XR", "RX")
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "LUNG", "LUNGS", "PULMONARY", "")
    min_side: int = Field(default=64, ge=1)
    max_pixels: int = Field(default=100_000_000, ge=1)
    max_frames: int = Field(default=1, ge=1)
    max_file_bytes: int = Field(default=512 * 1024**2, ge=1)
    max_seconds: float = Field(default=10.0, gt=0)
    max_memory: int = Field(default=2 * 1024**3, ge=256 * 1024**2)
    modality: Action = "refuse"
    body_part: Action = "refuse"
    frames: Action = "refuse"
    view: Action = "refuse"
    lateral_look: Action = "warn"
    not_human: Action = "refuse"
    not_a_chest: Action = "warn"
    not_a_radiograph: Action = "refuse"
    odd_header: Action = "warn"
    turned: Action = "warn"
    for_processing: Action = "warn"
    burned_in: Action = "accept"
    inverted_look: Action = "warn"
    out_of_distribution: Action = "refuse"

    def action(self, what: str | Concern) -> Action:
        """What a reason or a concern leads to; reasons that the policy has no setting for always refuse."""
        setting = what if isinstance(what, str) else what.setting or what.reason
        return getattr(self, setting) if setting in type(self).model_fields else "refuse"

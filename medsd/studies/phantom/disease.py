"""The lesions of a phantom patient: which come together, and how they change from image to image.

Heart failure brings a large heart and fluid in pleura and lung at once, a mass may block the lobe beyond it, and air in
the pleura is often seen with the tube that drains it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medsd.files import packaged
from medsd.studies.phantom.anatomy import LEFT, RIGHT, Distortion


@dataclass(frozen=True)
class Lesion:
    finding: str  # a name of phantom8
    kind: str  # how it shows: "plate", "lower" or "upper" for Atelectasis
    side: int  # −1 the patient's right, 1 the left
    severity: float  # 0 (barely visible) … 1
    where: tuple[float, float]  # in the lung, from hilum (0) to chest wall (1), from apex (0) to diaphragm (1)
    seed: int  # of its own random shape, kept from image to image


@dataclass(frozen=True)
class Condition:
    """One patient on one day: the setting that explains the lesions, and the lesions."""

    setting: str  # a key of conditions.yaml
    lesions: tuple[Lesion, ...]
    bedside: bool  # taken lying or half sitting at the bedside

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings present, in the order of phantom8."""
        return tuple(sorted({lesion.finding for lesion in self.lesions}))


# Setting → its share of the images, the chance of each finding and device, and of a bedside image.
_SETTINGS: dict[str, dict[str, Any]] = packaged("medsd.studies.phantom", "conditions.yaml")


def first_condition(rng: np.random.Generator) -> Condition:
    """Draw why a patient comes and what the image will show."""
    names = list(_SETTINGS)
    setting = str(rng.choice(names, p=[_SETTINGS[name]["share"] for name in names]))
    present = [finding for finding, rate in _SETTINGS[setting]["findings"].items() if rng.random() < rate]
    bedside = bool(rng.random() < _SETTINGS[setting]["bedside"])
    return Condition(setting, _lesions(present, setting, bedside, rng), bedside)


def evolve(rng: np.random.Generator, before: Condition) -> Condition:
    """The same patient some days later: most findings stay, better or worse, and new ones come."""
    if before.setting == "well" and rng.random() < 0.3:
        return first_condition(rng)
    kept = tuple(
        replace(lesion, severity=float(np.clip(lesion.severity * rng.uniform(0.55, 1.5), 0.03, 1.0)))
        for lesion in before.lesions
        if rng.random() < (0.92 if lesion.kind in ("pacemaker", "port", "wires", "sphere") else 0.7)
    )
    rates = _SETTINGS[before.setting]["findings"]
    absent = [finding for finding in rates if finding not in {lesion.finding for lesion in kept}]
    new = [finding for finding in absent if rng.random() < 0.4 * rates[finding]]
    bedside = before.bedside if rng.random() < 0.75 else bool(rng.random() < 0.3)
    lesions = kept + _lesions(new, before.setting, bedside, rng)
    # Fluid lies differently in a patient who lies down.
    posture = {"meniscus": "veil"} if bedside else {"veil": "meniscus"}
    lesions = tuple(replace(item, kind=posture.get(item.kind, item.kind)) for item in lesions)
    return Condition(before.setting, lesions, bedside)


def distortion_of(condition: Condition, rng: np.random.Generator) -> Distortion:
    """How the lesions and the posture of `condition` change the shape of the thorax."""
    heart, lift, pull = 1.0, [0.0, 0.0], 0.0
    for lesion in condition.lesions:
        amount = lesion.severity
        dome = 0 if lesion.side == RIGHT else 1
        if lesion.finding == "Cardiomegaly":
            heart = 1.17 + 0.38 * amount
        elif lesion.finding == "Atelectasis" and lesion.kind != "plate":
            lift[dome] += (1.2 + 3.0 * amount) * (1.0 if lesion.kind == "lower" else 0.6)
            pull += lesion.side * (0.5 + 1.8 * amount)
        elif lesion.finding == "Atelectasis":
            lift[dome] += 0.5 + 1.0 * amount
        elif lesion.finding == "Pneumothorax" and lesion.kind == "tension":
            lift[dome] -= 1.5 + 1.5 * amount
            pull -= lesion.side * (0.8 + 2.2 * amount)
        elif lesion.finding == "Effusion" and lesion.severity > 0.7:
            pull -= lesion.side * 1.2 * amount
    shallow = abs(rng.normal(1.4, 0.9)) if condition.bedside else abs(rng.normal(0, 0.6))
    lordotic = rng.uniform(0, 1.4) if condition.bedside else rng.normal(0, 0.25)
    return Distortion(heart, (lift[0], lift[1]), float(pull), float(shallow), float(lordotic))


def _lesions(findings: list[str], setting: str, bedside: bool, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """One or several lesions for each of `findings`, placed where they belong to each other."""
    side = int(rng.choice([RIGHT, RIGHT, RIGHT, LEFT, LEFT]))  # the side of the main disease
    where = (float(rng.uniform(0.15, 0.75)), float(rng.uniform(0.2, 0.85)))
    lesions: list[Lesion] = []
    for finding in findings:
        severity, seed = float(rng.beta(1.3, 1.5)), int(rng.integers(2**31))
        lesions += _place(Lesion(finding, "", side, severity, where, seed), setting, bedside, findings, rng)
    return tuple(lesions)


def _place(lesion: Lesion, setting: str, bedside: bool, findings: list[str], rng: np.random.Generator) -> list[Lesion]:
    finding, side = lesion.finding, lesion.side
    if finding == "Effusion":
        first = replace(lesion, kind="veil" if bedside else "meniscus")
        if rng.random() < (0.6 if setting in ("heart failure", "intensive care") else 0.1):
            return [first, replace(first, side=-side, severity=float(first.severity * rng.uniform(0.4, 1.0)))]
        return [first]
    if finding == "Consolidation":
        kind = "lobar" if rng.random() < 0.5 else "patch"
        where = (lesion.where[0] * 0.8 + 0.1, float(rng.choice([0.25, 0.55, 0.8, 0.85])))
        spot = replace(lesion, kind=kind, where=where)
        second = replace(spot, kind="patch", side=-side, severity=0.7 * lesion.severity, seed=lesion.seed + 1)
        return [spot, second] if rng.random() < 0.25 else [spot]
    if finding == "Atelectasis":
        if "Mass" in findings:  # beyond the mass: its lobe loses air
            return [replace(lesion, kind="upper" if lesion.where[1] < 0.5 else "lower")]
        kind = str(rng.choice(["plate", "lower", "upper"], p=[0.5, 0.38, 0.12]))
        bases = LEFT if setting == "intensive care" and rng.random() < 0.6 else side
        return [replace(lesion, kind=kind, side=bases)]
    if finding == "Pneumothorax":
        return [replace(lesion, kind="tension" if lesion.severity > 0.75 else "apical")]
    if finding == "Support Devices":
        return _devices(lesion, setting, findings, rng)
    return [replace(lesion, kind={"Mass": "sphere", "Edema": "wet", "Cardiomegaly": "large"}[finding])]


def _devices(lesion: Lesion, setting: str, findings: list[str], rng: np.random.Generator) -> list[Lesion]:
    kinds: list[str] = []
    chances = _SETTINGS[setting]["devices"]
    while not kinds:
        kinds = [kind for kind, chance in chances.items() if rng.random() < chance]
    if "Pneumothorax" in findings and "drain" not in kinds and rng.random() < 0.6:
        kinds.append("drain")
    sides = {"drain": lesion.side, "pacemaker": LEFT if rng.random() < 0.85 else RIGHT}
    return [
        replace(lesion, kind=kind, side=sides.get(kind, RIGHT if rng.random() < 0.75 else LEFT), seed=lesion.seed + n)
        for n, kind in enumerate(kinds)
    ]

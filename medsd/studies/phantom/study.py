"""One synthetic study: patient, condition, image and note, all from (seed, index).

Start at `generate_study`. Indices are grouped ten by ten and each group is cut into patients, so that any study can be
made on its own, in any order, and follow-up images share the anatomy of their patient.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.studies.phantom.anatomy import Habitus, build_body, sample_habitus
from medsd.studies.phantom.disease import Condition, distortion_of, evolve, first_condition
from medsd.studies.phantom.image import attenuation, develop, draw_scene, sample_exposure, sample_projection
from medsd.studies.phantom.note import write_note

FINDINGS = finding_set("phantom8")
_GROUP = 10  # indices that are cut into patients together


@dataclass(frozen=True)
class PhantomStudy:
    """One synthetic chest radiograph with its clinical note."""

    study: str  # patient and number of the visit: "PHANTOM-000012-2"
    patient: str
    findings: tuple[str, ...]  # of phantom8, in its order, those that were drawn
    note: str | None  # what the referrer wrote before the image was read
    view: str  # "PA" or "AP"
    sex: str  # "F" or "M"
    age: int
    pixels: npt.NDArray[np.float32] = field(repr=False)  # (H, W) in 0…1, dark air and bright bone
    # Finding → (x0, y0, x1, y1), where it was drawn, as fractions of the image.
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class PhantomPlan:
    """Everything that decides a study but its pixels; `first` is the index of the patient's first study."""

    seed: int
    index: int
    first: int
    visit: int  # 0 for the first
    habitus: Habitus
    condition: Condition

    @property
    def note(self) -> str | None:
        return write_note(self.stream("note"), self.habitus, self.condition, visit=self.visit)

    @property
    def view(self) -> str:
        return "AP" if self.condition.bedside else "PA"

    @property
    def patient(self) -> str:
        return f"PHANTOM-{self.seed * 1_000_000 + self.first:06d}"

    @property
    def study(self) -> str:
        return f"{self.patient}-{self.visit + 1}"

    def stream(self, name: str) -> np.random.Generator:
        """Random numbers of one step of this study, which no other step's use of them disturbs."""
        return _stream(self.seed, self.index, name)


def _stream(seed: int, index: int, name: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, index, zlib.crc32(name.encode())]))


def plan_study(index: int, *, seed: int = 0) -> PhantomPlan:
    """Who study `index` belongs to, which visit it is and what it will show."""
    if not 0 <= index < 1_000_000 or seed < 0:
        raise DataError(f"phantom: index {index} must lie in 0…999999, and seed {seed} must not be negative")
    first, visit = _patient_of(seed, index)
    person = _stream(seed, first, "patient")
    habitus = sample_habitus(person)
    condition = first_condition(person)
    for later in range(1, visit + 1):
        condition = evolve(_stream(seed, first + later, "evolve"), condition)
    return PhantomPlan(seed, index, first, visit, habitus, condition)


def _patient_of(seed: int, index: int) -> tuple[int, int]:
    """First index and number of the visit of the patient who has study `index`."""
    rng = _stream(seed, index // _GROUP, "group")
    first = index - index % _GROUP
    while True:
        visits = int(rng.choice([1, 2, 3, 4], p=[0.72, 0.16, 0.08, 0.04]))
        if index < first + visits:
            return first, index - first
        first += visits


def render_plan(plan: PhantomPlan, *, size: int = 512) -> PhantomStudy:
    """Make the image, `size` pixels wide and high, and the note of `plan`."""
    if size < 64:
        raise DataError(f"phantom: size {size} is too small to show a chest; take 64 pixels or more")
    condition = plan.condition
    body = build_body(plan.habitus, distortion_of(condition, plan.stream("posture")))
    projection = sample_projection(plan.stream("projection"), body, bedside=condition.bedside, size=size)
    exposure = sample_exposure(plan.stream("exposure"), bedside=condition.bedside)
    scene = draw_scene(body, projection, condition)
    pixels = develop(scene, attenuation(scene, condition, plan.stream), exposure, plan.stream("noise"))
    return PhantomStudy(
        study=plan.study,
        patient=plan.patient,
        findings=condition.findings,
        note=plan.note,
        view=plan.view,
        sex=plan.habitus.sex,
        age=plan.habitus.age,
        pixels=pixels,
        boxes={name: projection.fractions(box) for name, box in sorted(scene.boxes.items())},
    )


def generate_study(index: int, *, seed: int = 0, size: int = 512) -> PhantomStudy:
    """Study `index` of the endless series `seed`: the same image, note and labels in any order of generation."""
    return render_plan(plan_study(index, seed=seed), size=size)

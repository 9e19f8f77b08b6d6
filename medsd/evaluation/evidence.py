"""Whether evidence maps are right: maps against the boxes that radiologists drew, beside maps without any network.

Whether the highest point of a map lies in a box (the pointing game: Zhang et al., IJCV 2018), how far the part above
half of its maximum overlaps with the boxes (intersection over union), and which share of its positive mass lies inside
(the energy-based pointing game: Wang et al., CVPRW 2020). Start at `judge`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from medsd.errors import DataError
from medsd.evaluation.saved import Measured
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap, row_means
from medsd.metrics.metrics import FloatArray, ratio
from medsd.strict import Described
from medsd.studies.boxes import Box

EVIDENCE = "evaluation_evidence.json"
SIDE = 128  # points of a side of the grid that maps and boxes are compared on
CENTRE_SPREAD = 0.25  # standard deviation of the centre prior, in sides

Maps = npt.NDArray[np.floating]


class FindingEvidence(Described):
    """One finding: images with a box of it, and the share whose map points into it."""

    name: str
    images: int
    pointing: Interval


class MethodReport(Described):
    """One way of making maps; means are over the findings with enough images, `findings` all with a box.

    `lead` is pointing of the evidence maps minus pointing of this one, on the same resamples; None of themselves.
    """

    name: str
    pointing: Interval
    overlap: Interval
    inside: Interval
    lead: Interval | None
    findings: tuple[FindingEvidence, ...]


class EvidenceReport(Measured):
    """The whole of evaluation_evidence.json; `images` are pairs of image and finding that have a box.

    `randomised` is the rank correlation (Spearman) of the maps with those of the same network with random weights:
    those behind the encoder alone (classifier, and what boxes taught), and all of them (Adebayo et al., NeurIPS 2018);
    near 0 where maps show what was learned.
    """

    split: str = "test"
    images: int
    patients: int
    over: int
    minimum_positives: int
    methods: tuple[MethodReport, ...]
    randomised: dict[str, float]


def judge(
    maps: Mapping[str, Maps],
    findings: npt.NDArray[np.str_],
    patients: npt.NDArray[np.str_],
    boxes: Sequence[Sequence[Box]],
    options: IntervalOptions,
    *,
    randomised: Mapping[str, float] | None = None,
) -> EvidenceReport:
    """Judge ways of making maps, by name (N, h, w) each, on the same images; the first is the one that leads.

    The N entries are pairs of image and finding: the finding, the patient's key, and the boxes. A finding with fewer
    images than `minimum_positives` does not count in the means; `randomised` is for the record. A DataError is raised
    if no finding has enough images.
    """
    names, counts = np.unique(findings, return_counts=True)
    told = names[counts >= options.minimum_positives]
    if not len(told):
        raise DataError(f"boxes: no finding has {options.minimum_positives} images with a box in the test split")
    masks = np.stack([box_mask(of_image) for of_image in boxes])
    scores = {name: np.stack(_scores(each, masks), axis=1) for name, each in maps.items()}  # (N, 3)
    drawn = options.draw(patients)
    own = next(iter(scores.values()))[:, 0]

    def intervals(values: FloatArray, over: npt.NDArray[np.str_], lowest: int = 0) -> tuple[Interval, ...]:
        def statistic(weights: FloatArray) -> FloatArray:
            return np.stack([_by_finding(column, weights, findings, over) for column in values.T], axis=1)

        return bootstrap(statistic, drawn, options.confidence, (lowest, 1))

    methods = []
    for number, (name, values) in enumerate(scores.items()):
        pointing, overlap, inside = intervals(values, told)
        lead = intervals((own - values[:, 0])[:, None], told, -1)[0] if number else None
        each = tuple(
            FindingEvidence(name=str(f), images=int(count), pointing=intervals(values[:, :1], np.array([f]))[0])
            for f, count in zip(names, counts, strict=True)
        )
        methods.append(
            MethodReport(name=name, pointing=pointing, overlap=overlap, inside=inside, lead=lead, findings=each)
        )
    return EvidenceReport.of(
        options,
        images=len(masks),
        patients=len(set(patients)),
        over=len(told),
        methods=tuple(methods),
        randomised=dict(randomised or {}),
    )


def box_mask(boxes: Sequence[Box], side: int = SIDE) -> npt.NDArray[np.bool_]:
    """(side, side), True where the middle of a grid point lies in a box; a box between two points has the nearest."""
    middles = (np.arange(side) + 0.5) / side
    mask = np.zeros((side, side), dtype=bool)
    for box in boxes:
        down, across = _between(middles, box.top, box.bottom), _between(middles, box.left, box.right)
        mask |= down[:, None] & across[None, :]
    return mask


def centre_prior(count: int, side: int = SIDE) -> Maps:
    """(count, side, side): a bell over the middle of the image, the same for every image."""
    away = ((np.arange(side) + 0.5) / side - 0.5) / CENTRE_SPREAD
    bell = np.exp(-0.5 * (away[:, None] ** 2 + away[None, :] ** 2))
    return np.broadcast_to(bell, (count, side, side))


def usual_place(findings: npt.NDArray[np.str_], known: Mapping[str, Sequence[Sequence[Box]]], side: int = SIDE) -> Maps:
    """(N, side, side): how often each point lay in a box of the finding of the map, on other patients' images.

    `known` has the boxes of each image of the training patients, by finding; without any there is the centre prior.
    """
    heat = {
        str(name): np.mean([box_mask(boxes, side) for boxes in known[name]], axis=0)
        if known.get(name)
        else centre_prior(1, side)[0]
        for name in np.unique(findings)
    }
    return np.stack([heat[str(name)] for name in findings])


def _scores(maps: Maps, masks: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Pointing, overlap and share inside, (N,) each; a map without anything positive has no mass and no overlap."""
    hits, overlaps, inside = (np.zeros(len(masks)) for _ in range(3))
    for n, (each, mask) in enumerate(zip(maps, masks, strict=True)):
        picture = Image.fromarray(np.ascontiguousarray(each, dtype=np.float32))
        grid = np.asarray(picture.resize(mask.shape, Image.Resampling.BICUBIC), dtype=np.float64)
        hits[n] = mask[grid == grid.max()].mean()  # ties count by their share
        positive = np.clip(grid, 0, None)
        if positive.max() > 0:
            region = positive >= positive.max() / 2
            overlaps[n] = (region & mask).sum() / (region | mask).sum()
            inside[n] = positive[mask].sum() / positive.sum()
    return hits, overlaps, inside


def _by_finding(
    values: FloatArray, weights: FloatArray, findings: npt.NDArray[np.str_], over: npt.NDArray[np.str_]
) -> FloatArray:
    """(R,): the weighted mean of each finding's images, then the mean over the findings that were drawn at all."""
    means = np.full((len(weights), len(over)), np.nan)
    for f, name in enumerate(over):
        of_it = findings == name
        means[:, f] = ratio(weights[:, of_it] @ values[of_it], weights[:, of_it].sum(axis=1))
    return row_means(means)


def _between(middles: FloatArray, low: float, high: float) -> npt.NDArray[np.bool_]:
    inside = (middles >= low) & (middles < high)
    if not inside.any():
        inside[np.abs(middles - (low + high) / 2).argmin()] = True
    return inside

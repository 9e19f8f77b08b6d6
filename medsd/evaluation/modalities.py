"""How much a fused model relies on image and note, so that a note that gives the answer away is noticed.

The logit of a study with both is half that of its image alone plus half that of its note alone (see
`medsd.networks.fusion`), so every figure here comes from those two: the share of each in the logit's variance, what
is lost when one is withheld, and what is lost when it is another patient's (permutation importance: Breiman 2001).
Start at `measure_reliance`; `score_sentences` measures whether a sentence finds images.
"""

import numpy as np
import numpy.typing as npt

from medsd.errors import DataError
from medsd.evaluation.saved import Measured
from medsd.findings import FindingSet
from medsd.metrics.intervals import Interval, IntervalOptions, bootstrap
from medsd.metrics.metrics import FloatArray, enough, ratio, weighted_aurocs
from medsd.metrics.retrieval import RetrievalReport, unit
from medsd.strict import Described

MODALITIES = "evaluation_modalities.json"
SHUFFLES = 10  # permutations among patients, over which the loss is a mean
NEARLY_ALL = 0.95  # of what both gain over chance, that the note alone reaches where it gives the answer away


class Reliance(Described):
    """How much one modality contributes; all but the variance are macro AUROC.

    The shares of the variance of the logits (means over findings) add up to 1; one is below 0 where it speaks against
    the sum. `lost_when_shuffled`: with another patient's.
    """

    alone: Interval
    variance_share: Interval
    lost_when_withheld: Interval
    lost_when_shuffled: Interval


class SentenceScore(Described):
    """Of the first `k` images that a sentence finds, the share with the finding; and that share at random."""

    name: str
    sentence: str
    positives: int
    precision: Interval
    at_random: float


class SentencesReport(Described):
    """Sentences that name a finding, against `images` read alone, of which the first `k` are looked at."""

    k: int
    images: int
    precision: Interval  # the mean over the findings
    gain_over_random: Interval  # that mean minus the mean share of images with the finding, on the same resamples
    findings: tuple[SentenceScore, ...]


class ModalityReport(Measured):
    """Studies with both image and note, read with both and with less; means are over the `over` findings."""

    split: str = "test"
    studies: int
    patients: int
    over: int
    both: Interval  # macro AUROC with both
    image: Reliance
    note: Reliance
    note_gives_away: bool  # alone it gains `NEARLY_ALL` of what both gain, and another patient's loses more than half
    note_to_image: RetrievalReport | None = None  # notes as queries for training images, read without their notes
    sentences: SentencesReport | None = None  # None: names of findings are masked, or no modalities were contrasted

    @property
    def warning(self) -> str:
        """What to say where the note gives the answer away; "" where it does not."""
        if not self.note_gives_away:
            return ""
        return (
            f"The note gives the answer away: read alone it reaches a macro AUROC of {self.note.alone}, against "
            f"{self.both} with the image. Check whether the notes name the findings (network.note.mask_findings), or "
            "were written after the image was read."
        )


def measure_reliance(
    image: npt.NDArray[np.floating],
    note: npt.NDArray[np.floating],
    target: npt.NDArray[np.floating],
    patients: npt.NDArray[np.str_],
    options: IntervalOptions,
    note_to_image: RetrievalReport | None = None,
    sentences: SentencesReport | None = None,
) -> ModalityReport:
    """How much each modality contributes to N studies with both; the seed of `options` is also the permutations'.

    `image` and `note` (N, F) are the logits of each alone, `target` (N, F) is 1, 0 or NaN, `patients` (N,) are keys;
    `note_to_image` and `sentences` are for the record. A DataError is raised for too few positives, negatives or
    patients.
    """
    told = np.flatnonzero(enough(target, options.minimum_positives))
    if not told.size or len(np.unique(patients)) < 2:
        raise DataError("too few studies with image and note to measure what each contributes")
    truth = target[:, told].astype(np.float64)
    image, note = (each[:, told].astype(np.float64) / 2 for each in (image, note))
    donors = _donors(patients, options.seed)

    def statistic(weights: FloatArray) -> FloatArray:
        def area(scores: FloatArray) -> FloatArray:
            return weighted_aurocs(truth, scores, weights).mean(axis=1)

        both, alone = area(image + note), (area(image), area(note))
        pairs = [(area(image[d] + note), area(image + note[d])) for d in donors]
        shuffled = np.mean(pairs, axis=0)  # (2, R)
        share = _note_share(image, note, weights)
        lost = [both - each for each in (*alone[::-1], *shuffled)]
        return np.column_stack([both, *alone, 1 - share, share, *lost])

    both, *rest = bootstrap(statistic, options.draw(patients), options.confidence)
    by_image, by_note = (Reliance(**dict(zip(Reliance.model_fields, rest[first::2], strict=True))) for first in (0, 1))
    return ModalityReport.of(
        options,
        studies=len(target),
        patients=len(np.unique(patients)),
        over=len(told),
        both=both,
        image=by_image,
        note=by_note,
        note_gives_away=_gives_away(both, by_note),
        note_to_image=note_to_image,
        sentences=sentences,
    )


def score_sentences(
    findings: FindingSet,
    sentences: npt.NDArray[np.floating],
    images: npt.NDArray[np.floating],
    target: npt.NDArray[np.floating],
    patients: npt.NDArray[np.str_],
    options: IntervalOptions,
    *,
    k: int = 10,
) -> SentencesReport:
    """Precision@k of a sentence for each of F findings among N images that were read without their notes.

    `sentences` (F, D) and `images` (N, D) are embeddings; `target` (N, F) is 1, 0 or NaN, `patients` (N,) are keys. An
    image whose label is unknown is not looked at for that finding. A DataError is raised if no finding has enough
    positives and negatives.
    """
    target = np.asarray(target, dtype=np.float64)
    told = np.flatnonzero(enough(target, options.minimum_positives))
    if not told.size:
        raise DataError("too few images with and without each finding to tell whether sentences find them")
    similarity = unit(sentences) @ unit(images).T  # (F, N)

    def statistic(weights: FloatArray) -> FloatArray:
        found, chance = np.zeros((len(weights), len(told))), np.zeros((len(weights), len(told)))
        for column, finding in enumerate(told):
            order = np.argsort(-similarity[finding], kind="stable")
            order = order[~np.isnan(target[order, finding])]
            drawn, has = weights[:, order], target[order, finding]
            taken = np.clip(k - (np.cumsum(drawn, 1) - drawn), 0, drawn)  # an image drawn twice takes two places
            found[:, column] = ratio(taken @ has, taken.sum(1))
            chance[:, column] = ratio(drawn @ has, drawn.sum(1))
        return np.column_stack([(found - chance).mean(1), found.mean(1), found])

    drawn = options.draw(patients)
    gain, *_ = bootstrap(statistic, drawn, options.confidence)
    mean, *each = bootstrap(lambda weights: statistic(weights)[:, 1:], drawn, options.confidence, bounds=(0, 1))
    return SentencesReport(
        k=k,
        images=len(images),
        precision=mean,
        gain_over_random=gain,
        findings=tuple(
            SentenceScore(
                name=findings.names[f],
                sentence=findings.findings[f].title.lower(),
                positives=int(np.nansum(target[:, f])),
                precision=interval,
                at_random=float(np.nanmean(target[:, f])),
            )
            for f, interval in zip(told, each, strict=True)
        ),
    )


def _gives_away(both: Interval, note: Reliance) -> bool:
    if both.value is None or note.alone.value is None or note.lost_when_shuffled.value is None:
        return False
    gain = both.value - 0.5
    nearly_all = note.alone.value - 0.5 >= NEARLY_ALL * gain
    return gain > 0 and nearly_all and note.lost_when_shuffled.value > gain / 2


def _note_share(image: FloatArray, note: FloatArray, weights: FloatArray) -> FloatArray:
    """(R,) cov(note, sum) / var(sum), the mean over the findings: with the image's the shares add up to 1."""
    total = image + note
    whole = weights.sum(1, keepdims=True)
    mean_note, mean_total = (weights @ note) / whole, (weights @ total) / whole
    covariance = (weights @ (note * total)) / whole - mean_note * mean_total
    variance = (weights @ total**2) / whole - mean_total**2
    return ratio(covariance, variance).mean(1)


def _donors(patients: npt.NDArray[np.str_], seed: int) -> list[npt.NDArray[np.int64]]:
    """`SHUFFLES` times (N,): for each study a study of another patient, patients in a random ring."""
    names, patient_of = np.unique(patients, return_inverse=True)
    rows = [np.flatnonzero(patient_of == patient) for patient in range(len(names))]
    generator, found = np.random.default_rng(seed), []
    for _ in range(SHUFFLES):
        ring = generator.permutation(len(names))
        following = np.empty(len(names), dtype=np.int64)
        following[ring] = np.roll(ring, -1)
        found.append(np.array([generator.choice(rows[following[patient]]) for patient in patient_of]))
    return found

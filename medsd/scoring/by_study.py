"""One row a study: the images of each study combined, whichever engine scored them.

How images are combined:

- The probability of a finding is the mean over the frontal images of the study that were scored. Thresholds are then
  applied to the mean: operating points, or conformal limits where a coverage is named. A study with one such image has
  the row of that image.
- Lateral and oblique images are not averaged in, by their header or by their look; the model reads frontal ones.
- Copies of one instance (the same SOP Instance UID) count once; the best of them does, where one copy is damaged.
- Refused images are not averaged in; the row counts them and says why each was refused. A study is refused where
  nothing is left, and warned about where an image was, or where one was refused for another reason than its view.
- An input whose header names no study (a PNG, a note, a damaged file) is a study of its own.

The table of the images is kept beside that of the studies, as `results.images.csv` of `results.csv`: it is what
`--resume` goes on from. Begin at `score`.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsd.bundle.layout import Bundle
from medsd.errors import DataError
from medsd.inference.coverage import called, conformal_limits
from medsd.inference.prediction import NOT_TRAINED
from medsd.scoring import table
from medsd.scoring.remote import download, place_of, upload
from medsd.scoring.request import ScoringRequest, Summary
from medsd.scoring.table import Row

PATIENTS_DIFFER = "patients_differ"  # a reason of studies alone, beside those of `medsd.dicom.policy.REASONS`
_NOT_FRONTAL = ("LATERAL", "OTHER")
_BEST_FIRST = ("scored", "warned", "refused")


def score(run: Callable[[ScoringRequest], Summary], request: ScoringRequest) -> Summary:
    """Score the inputs of `request`, and write one row a study into its `out`; embeddings stay one a row of the images.

    `run` is `medsd.scoring.batch.score` or `medsd.scoring.cluster.score`. Raises what it raises, and DataError where
    the table of the studies cannot be written.
    """
    place, defuse = place_of(request.out), request.defuse_formulas
    images = _beside(place)
    if isinstance(place, Path) and place.is_dir():
        raise DataError(f"{place}: is a folder; give the table another name")
    bundle = request.bundle if isinstance(request.bundle, Bundle) else Bundle.open(request.bundle)
    summary = run(replace(request, bundle=bundle, out=images))
    studies = Studies(bundle, request.coverage)
    with tempfile.TemporaryDirectory(prefix="medsd-") as folder:
        source, target = (
            each if isinstance(each, Path) else Path(folder, each.rpartition("/")[2]) for each in (images, place)
        )
        if isinstance(images, str):
            download(images, source)
        rows = studies.rows(lambda: table.read_table(source, defused=defuse))
        table.write_table(target, rows, table.study_columns(bundle.findings), defuse=defuse)
        if isinstance(place, str):
            upload(target, place)
    return replace(summary, out=str(place), studies=studies.count)


def _beside(place: Path | str) -> Path | str:
    """The table of the images of a table of studies."""
    if isinstance(place, Path):
        return place.with_name(f"{place.stem}.images{place.suffix}")
    stem, dot, suffix = place.rpartition(".")
    return f"{stem}.images{dot}{suffix}"


class Studies:
    """Combines the rows of images that `bundle` scored; `count` is that of the studies so far.

    Calls are conformal at `coverage`; where it is None, they are made at the operating points.
    """

    def __init__(self, bundle: Bundle, coverage: float | None = None) -> None:
        self._bundle, self._coverage = bundle, coverage
        self._limits = None if coverage is None else conformal_limits(bundle, coverage)
        self.count = 0

    def rows(self, images: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        """The rows of the studies, each when the last of its images has been seen.

        `images` reads the rows of the images; it is called twice, so that only unfinished studies are in memory.
        """
        left = Counter(row["study_key"] for row in images() if row["study_key"])
        begun: dict[str, list[Row]] = {}
        for row in images():
            key = row["study_key"]
            if not key:
                yield self.combine([row])
                continue
            begun.setdefault(key, []).append(row)
            left[key] -= 1
            if not left[key]:
                del left[key]
                yield self.combine(begun.pop(key))

    def combine(self, rows: Sequence[Row]) -> Row:
        """The row of one study from those of its images, by the rules above."""
        self.count += 1
        images = _once_each(rows)
        refused = [row for row in images if row["status"] == "refused"]
        others = [row for row in images if row["status"] != "refused" and row["view"] in _NOT_FRONTAL]
        used = [row for row in images if row["status"] != "refused" and row["view"] not in _NOT_FRONTAL]
        patients = list(dict.fromkeys(row["patient_key"] for row in rows if row["patient_key"]))
        status, reason, message = _verdict(used, others, refused, len(patients))
        return {
            "study_key": rows[0]["study_key"],
            "patient_key": patients[0] if patients else "",
            "status": status,
            "reason": reason,
            "message": message,
            "images": len(images),
            "images_used": len(used),
            "images_not_frontal": len(others),
            "images_refused": len(refused),
            "duplicates": len(rows) - len(images),
            "paths_used": _json([row["path"] for row in used]),
            "paths_not_frontal": _json([row["path"] for row in others]),
            "paths_refused": _json({row["path"]: row["reason"] for row in refused}),
            **self._said(used),
            "model": rows[0]["model"],
            "model_sha256": rows[0]["model_sha256"],
        }

    def _said(self, used: Sequence[Row]) -> Row:
        """Probabilities and calls of a study; empty ones where no image is left."""
        names = self._bundle.findings.names
        found: Row = {}
        if len(used) <= 1:  # its own words, which the rounding of the table cannot change
            for name in names:
                found |= {f"probability_{name}": None, f"call_{name}": ""}
            found |= {"out_of_distribution": None}
            return {column: used[0][column] for column in found} if used else found
        values = np.array([[row[f"probability_{name}"] for name in names] for row in used], np.float64).mean(0)  # (F,)
        calls = called(self._bundle, values, self._coverage, self._limits)["calls"]
        for name, value in zip(names, values.tolist(), strict=True):
            found |= {f"probability_{name}": table.rounded(value), f"call_{name}": calls.get(name, NOT_TRAINED)}
        unlike = [row["out_of_distribution"] for row in used if row["out_of_distribution"] is not None]
        return found | {"out_of_distribution": max(unlike, default=None)}


def _once_each(rows: Sequence[Row]) -> list[Row]:
    """The images of a study, of copies of one instance the best."""
    best: dict[str, Row] = {}
    for row in rows:
        key = row["instance_key"] or f"path {row['path']}"
        if key not in best or _BEST_FIRST.index(row["status"]) < _BEST_FIRST.index(best[key]["status"]):
            best[key] = row
    return list(best.values())


def _verdict(used: Sequence[Row], others: Sequence[Row], refused: Sequence[Row], patients: int) -> tuple[str, str, str]:
    reasons = Counter(row["reason"] for row in refused)
    counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    said = list(dict.fromkeys(row["message"] for row in used if row["message"]))
    if refused:
        # One image that is all there is speaks for itself; of several, the row says how many were refused and why.
        alone = len(refused) == 1 and not used and not others
        said.append(refused[0]["message"] if alone else f"{len(refused)} images were refused ({counted}).")
    if not used:
        if others:
            said.append(f"No frontal image: {len(others)} are lateral or oblique.")
        return "refused", reasons.most_common(1)[0][0] if reasons else "view", " ".join(said)
    concerns = [row["reason"] for row in used if row["status"] == "warned"]
    concerns += [reason for reason in reasons if reason != "view"]
    if patients > 1:
        concerns.insert(0, PATIENTS_DIFFER)
        said.insert(0, f"The images of this study name {patients} patients. Check which image is whose.")
    return ("warned", concerns[0], " ".join(said)) if concerns else ("scored", "", " ".join(said))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

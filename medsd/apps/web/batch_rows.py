"""The rows of a batch on the page: in an order, by image or by study, with counts by finding."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medsd.apps.web.html import fill
from medsd.findings import FindingSet
from medsd.inference.prediction import NOT_TRAINED, Prediction
from medsd.inference.words import impression
from medsd.results.render import thumbnail_uri
from medsd.scoring import table

DROPPED, STATUS = "dropped", "status"
SHOWN = 200  # rows on the page; the table to download has all
LATEST = 20  # rows on the page while others are read
_WORST_FIRST = ("refused", "warned", "scored")
_LISTS = ("paths_used", "paths_not_frontal")  # of a row of a study, as JSON


class BatchRow(NamedTuple):
    """What was said of one image."""

    number: str  # how the page calls it
    name: str  # how its owner calls it
    said: table.Row  # its `path` is the number
    thumbnail: bytes | None


@dataclass(frozen=True)
class Line:
    """One row on the page, of an image or of a study."""

    said: Prediction
    images: tuple[str, ...]  # numbers
    thumbnail: str | None  # a data URI


def lines(
    rows: Sequence[table.Row], images: Sequence[BatchRow], called: Mapping[str, str], findings: FindingSet
) -> list[Line]:
    """The rows of a table, of images or of studies, for the page."""
    pictures = {image.number: image.thumbnail for image in images}
    found = []
    for row in rows:
        numbers = _images(row)
        first = next((picture for number in numbers if (picture := pictures[number])), None)
        found.append(Line(_prediction(row, findings), numbers, thumbnail_uri(first)))
    return found


def in_order(found: Sequence[Line], order: str) -> list[Line]:
    """By `STATUS`, or by the probability of a finding; what was dropped first stands first among equals."""
    if order == DROPPED:
        return list(found)
    if order == STATUS:
        return sorted(found, key=lambda line: _WORST_FIRST.index(line.said.status))
    return sorted(found, key=lambda line: -line.said.probabilities.get(order, -1.0))


def page(
    total: int,
    counts: Counter[str],
    found: Sequence[Line],
    called: Mapping[str, str],
    *,
    done: int | None = None,
    places: Sequence[str] = (),
) -> str:
    """Progress, counts by finding, and the rows `found`; `called` are the names of images by their numbers.

    Of `total` rows `done` are there, None for all, `counts` of each status. `places` are the numbers of the images that
    can be opened, in the order of the drop.
    """
    present = Counter(name for line in found for name in line.said.present) if done is None else Counter()
    return fill(
        "batch",
        done=total if done is None else done,
        total=total,
        counts=[f"{counts[status]} {status}" for status in ("scored", "warned", "refused") if counts[status]],
        present=present.most_common(),
        rows=[
            (line, [(called[each], places.index(each) if each in places else None) for each in line.images])
            for line in found[:SHOWN]
        ],
        hidden=max(0, len(found) - SHOWN),
        impression=impression,
    )


def renamed(row: table.Row, called: Mapping[str, str]) -> table.Row:
    """A row of an image or of a study whose images are called otherwise."""
    if "path" in row:
        return row | {"path": table.printable(called[row["path"]])}
    refused = {called[path]: why for path, why in json.loads(row["paths_refused"]).items()}
    others = {name: [called[path] for path in json.loads(row[name])] for name in _LISTS}
    return row | {
        name: json.dumps(value, ensure_ascii=False) for name, value in (others | {"paths_refused": refused}).items()
    }


def _images(row: table.Row) -> tuple[str, ...]:
    """The numbers of the images of a row."""
    if "path" in row:
        return (row["path"],)
    used: list[Any] = [path for name in _LISTS for path in json.loads(row[name])]
    return (*used, *json.loads(row["paths_refused"]))


def _prediction(row: table.Row, findings: FindingSet) -> Prediction:
    """What a row says, as a prediction, so that it is put in the same words."""
    said = (findings, row["status"], row["reason"], row["message"])
    if row["status"] == "refused":
        return Prediction(*said)
    values = np.array([np.nan if (p := row[f"probability_{name}"]) is None else p for name in findings], np.float32)
    calls = {name: call for name in findings if (call := row[f"call_{name}"]) != NOT_TRAINED}
    return Prediction(*said, values=values, calls=calls)

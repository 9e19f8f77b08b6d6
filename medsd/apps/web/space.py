"""The tab Space: a map of the cases, coloured by a finding, with the study at hand in it; a point opens its case."""

import logging
import threading
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import numpy.typing as npt

from medsd.apps.web import case_cards, scripts
from medsd.apps.web.case_cards import Gallery
from medsd.apps.web.html import fill
from medsd.apps.web.reading import Reader, Reading
from medsd.cases.explain import explain, explain_query
from medsd.cases.space import CasePlane, lay_out
from medsd.errors import DataError

log = logging.getLogger(__name__)

_WIDTH, _HEIGHT, _MARGIN = 1000.0, 560.0, 24.0
_NO_CASE = '<p class="quiet">Choose a point to see its case.</p>'
_NO_MAP = "The map could not be drawn. Check the case index with `medsd similar`."


class SpaceDesk:
    """What the tab does, shared by all sessions."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._plane: CasePlane | None = None
        self._labels: dict[str, npt.NDArray[np.float32]] = {}
        self._lock = threading.Lock()

    def draw(self, finding: str | None, reading: Reading | None) -> str:
        """The map as HTML, coloured by a finding; a sentence where there is none."""
        try:
            plane = self._laid_out()
        except DataError as error:
            return f'<p class="quiet" role="status">{escape(str(error))}</p>'
        except Exception as error:
            log.error("the map could not be drawn: %s", type(error).__name__)
            return f'<p class="quiet" role="status">{_NO_MAP}</p>'
        embedding = None if reading is None else reading.prediction.embedding
        query = None if embedding is None else plane.place(embedding)
        return self._map(plane, finding or self.reader.bundle.findings.names[0], query)

    def open(self, reading: Reading | None, event: gr.EventData) -> str:
        """The card of a point's case, related to the study at hand where there is one."""
        point = scripts.sent(event).get("point")
        plane = self._plane
        if self.reader.index is None or plane is None or not isinstance(point, int) or not 0 <= point < len(plane.rows):
            return _NO_CASE
        hits = self.reader.index.nearest(plane.embeddings[point], 1, exact=True)
        if not hits:  # removed since the map was drawn
            return _NO_CASE
        findings = self.reader.bundle.findings
        prediction = reading.prediction if reading is not None else None
        if related := prediction is not None and prediction.embedding is not None:
            near = [replace(hit, similarity=float(hit.embedding @ prediction.embedding)) for hit in hits]
            [case] = explain(prediction, near, self.reader.index.description.scale)
        else:
            [case] = explain_query(np.zeros(len(findings), np.float32), hits, findings)
        about = Gallery(key="point-", title="Case", related=related, pins=False)
        return case_cards.gallery(about, [case], [self.reader.picture(case)], findings)

    def _laid_out(self) -> CasePlane:
        index = self.reader.index
        if index is None:
            raise DataError("This model ships without earlier cases.")
        with self._lock:
            if self._plane is None or self._plane.total != len(index):
                plane = lay_out(index)
                table = index.table().iloc[plane.rows]
                self._labels = {name: table[name].to_numpy(np.float32) for name in index.findings}
                self._plane = plane
            return self._plane

    def _map(self, plane: CasePlane, finding: str, query: tuple[float, float] | None) -> str:
        findings = self.reader.bundle.findings
        labels, places = self._labels[finding], _places(plane.points, query)
        known = np.stack([self._labels[name] for name in findings], axis=1)  # (P, F)
        points = []
        # What is present is drawn last, above the rest.
        for number in np.argsort(np.nan_to_num(labels, nan=-1), kind="stable"):
            none = "nothing is known" if np.isnan(known[number]).all() else "no finding"
            present = [findings.title(name) for name, on in zip(findings, known[number] == 1, strict=True) if on]
            points.append(
                {
                    "kind": "unknown" if np.isnan(labels[number]) else "present" if labels[number] == 1 else "absent",
                    "x": round(places[number][0], 1),
                    "y": round(places[number][1], 1),
                    "number": number,
                    "label": ", ".join(present) or none,
                }
            )
        count = len(plane.rows)
        return fill(
            "map",
            points=points,
            finding=findings.title(finding),
            shown=f"{count:,} of {plane.total:,} cases" if count < plane.total else f"{count:,} cases",
            query=None if query is None else places[-1].round(1).tolist(),
            explained=f"{plane.explained * 100:.0f}",
            width=round(_WIDTH),
            height=round(_HEIGHT),
        )


def _places(points: npt.NDArray[np.float32], query: tuple[float, float] | None) -> npt.NDArray[np.float64]:
    """Points, and the study at hand last, in the coordinates of the picture; both axes have one scale."""
    every = np.vstack([points, [query]]) if query is not None else points
    low, high = every.min(axis=0).astype(float), every.max(axis=0).astype(float)
    span = np.maximum(high - low, 1e-6)
    scale = min((_WIDTH - 2 * _MARGIN) / span[0], (_HEIGHT - 2 * _MARGIN) / span[1])
    centred = (every - (low + high) / 2) * scale
    return np.column_stack([_WIDTH / 2 + centred[:, 0], _HEIGHT / 2 - centred[:, 1]])


class SpaceTab:
    """The components of the tab, and their wiring; the map is drawn when the `tab` is opened."""

    def __init__(self, reader: Reader, tab: Any, reading: Any) -> None:
        desk = SpaceDesk(reader)
        names = [(finding.title, finding.name) for finding in reader.bundle.findings.findings]
        finding = gr.Dropdown(names, value=names[0][1], label="Coloured by", elem_id="space-finding", filterable=False)
        with gr.Row(elem_id="space", equal_height=False):
            shown = scripts.html('<p class="quiet" role="status">Drawing …</p>', "space-map", scripts.MAP)
            case = scripts.html(_NO_CASE, "space-case")
        quick = scripts.handling("space", 2)
        tab.select(desk.draw, [finding, reading], shown, **quick)
        finding.input(desk.draw, [finding, reading], shown, **quick)
        shown.select(desk.open, [reading], case, **scripts.handling("space", 2, "multiple"))

"""The tab «Space»: a map of the cases, coloured by a finding, with the film at hand in it; a point opens its case."""

from __future__ import annotations

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
from medsd.apps.web.reading import Reader, Reading
from medsd.cases.explain import explain, explain_query
from medsd.cases.space import CasePlane, lay_out
from medsd.errors import DataError

log = logging.getLogger(__name__)

_WIDTH, _HEIGHT, _MARGIN = 1000.0, 560.0, 24.0
_NO_CASE = '<p class="quiet">Choose a point to see its case.</p>'
_NO_MAP = "The map could not be drawn. Check the case index with «medsd similar»."


class SpaceDesk:
    """What the tab does.

    Args:
        reader: holds the index; shared by all sessions.
    """

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
        return self._svg(plane, finding or self.reader.bundle.findings.names[0], _query(plane, reading))

    def open(self, reading: Reading | None, event: gr.EventData) -> str:
        """The card of a point's case, related to the film at hand where there is one."""
        point = scripts.sent(event).get("point")
        plane = self._plane
        if self.reader.index is None or plane is None or not isinstance(point, int) or not 0 <= point < len(plane.rows):
            return _NO_CASE
        hits = self.reader.index.nearest(plane.embeddings[point], 1, exact=True)
        if not hits:  # removed since the map was drawn
            return _NO_CASE
        findings = self.reader.bundle.findings
        prediction = reading.prediction if reading is not None else None
        related = prediction is not None and prediction.embedding is not None
        if prediction is not None and prediction.embedding is not None:
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

    def _svg(self, plane: CasePlane, finding: str, query: tuple[float, float] | None) -> str:
        findings = self.reader.bundle.findings
        labels, places = self._labels[finding], _places(plane.points, query)
        names = list(findings)
        known = np.stack([self._labels[name] for name in names], axis=1)  # (P, F)
        words = [findings.title(name) for name in names]
        points = []
        # What is present is drawn last, above the rest.
        for point in np.argsort(np.nan_to_num(labels, nan=-1), kind="stable"):
            kind = "unknown" if np.isnan(labels[point]) else "present" if labels[point] == 1 else "absent"
            none = "nothing is known" if np.isnan(known[point]).all() else "no finding"
            said = ", ".join(w for w, on in zip(words, known[point] == 1, strict=True) if on) or none
            x, y = places[point]
            points.append(
                f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if kind == "present" else 4}" '
                f'data-point="{point}" data-label="Case: {escape(said)}"/>'
            )
        here = _cross(*places[-1]) if query is not None else ""
        title, count = escape(findings.title(finding)), len(plane.rows)
        shown = f"{count:,} of {plane.total:,} cases" if count < plane.total else f"{count:,} cases"
        return (
            f'<figure class="space"><div class="map" tabindex="0" role="application" aria-label="Map of {shown}, '
            f'coloured by {title}. Arrow keys move to a case, Enter opens it."><svg viewBox="0 0 {_WIDTH:.0f} '
            f'{_HEIGHT:.0f}" aria-hidden="true">{"".join(points)}{here}</svg></div><figcaption>'
            f'<span class="key present">{title}</span><span class="key absent">without it</span>'
            f'<span class="key unknown">not known</span>{_legend_of_query(query)}'
            f'<span class="quiet">{shown}; two principal components, {plane.explained * 100:.0f} % of the variance'
            '</span><span class="said" aria-live="polite"></span></figcaption></figure>'
        )


def _query(plane: CasePlane, reading: Reading | None) -> tuple[float, float] | None:
    if reading is None or reading.prediction.embedding is None:
        return None
    return plane.place(reading.prediction.embedding)


def _places(points: npt.NDArray[np.float32], query: tuple[float, float] | None) -> npt.NDArray[np.float64]:
    """Points, and the film last, in the coordinates of the picture; both axes have one scale."""
    every = np.vstack([points, [query]]) if query is not None else points
    low, high = every.min(axis=0).astype(float), every.max(axis=0).astype(float)
    span = np.maximum(high - low, 1e-6)
    scale = min((_WIDTH - 2 * _MARGIN) / span[0], (_HEIGHT - 2 * _MARGIN) / span[1])
    centred = (every - (low + high) / 2) * scale
    return np.column_stack([_WIDTH / 2 + centred[:, 0], _HEIGHT / 2 - centred[:, 1]])


def _cross(x: float, y: float) -> str:
    return f'<g class="query" transform="translate({x:.1f} {y:.1f})"><circle r="13"/><path d="M-20 0H20M0 -20V20"/></g>'


def _legend_of_query(query: tuple[float, float] | None) -> str:
    return '<span class="key query">your film</span>' if query is not None else ""


class SpaceTab:
    """The components of the tab, and their wiring.

    Args:
        reader: holds the index.
        tab: the tab itself; the map is drawn when it is opened.
        reading: the state with the film at hand.
    """

    def __init__(self, reader: Reader, tab: Any, reading: Any) -> None:
        desk = SpaceDesk(reader)
        names = [(finding.title, finding.name) for finding in reader.bundle.findings.findings]
        finding = gr.Dropdown(names, value=names[0][1], label="Coloured by", elem_id="space-finding", filterable=False)
        with gr.Row(elem_id="space", equal_height=False):
            shown = gr.HTML(
                '<p class="quiet" role="status">Drawing …</p>',
                elem_id="space-map",
                js_on_load=scripts.MAP,
                apply_default_css=False,
            )
            case = gr.HTML(_NO_CASE, elem_id="space-case", js_on_load=None, apply_default_css=False)
        quick: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_limit": 2,
            "concurrency_id": "space",
            "api_visibility": "private",
        }
        tab.select(desk.draw, [finding, reading], shown, **quick)
        finding.input(desk.draw, [finding, reading], shown, trigger_mode="always_last", **quick)
        shown.select(desk.open, [reading], case, **quick)

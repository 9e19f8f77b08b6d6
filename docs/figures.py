"""The figure of the five relations, drawn as SVG; its numbers come from `medsd.sd.relations`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medsd.sd.relations import Relation, dissimilarity_factor, relation_matrix, similarity_factor

FINDINGS = ("Effusion", "Cardiomegaly", "Edema", "Nodule")
ANCHOR = ("Effusion", "Cardiomegaly")
SAMPLES = (("Nodule",), ANCHOR, ("Effusion", "Nodule"), (*ANCHOR, "Edema"), ("Effusion",))

# By relation: centre and radius of the circle of the anchor S, then of the circle of the sample T; (x, y, r).
_CIRCLES = {
    Relation.DISJOINT: ((44, 80, 30), (116, 80, 30)),
    Relation.EQUAL: ((80, 80, 42), (80, 80, 37)),
    Relation.OVERLAP: ((62, 80, 38), (98, 80, 38)),
    Relation.SUPERSET: ((72, 80, 24), (80, 80, 44)),
    Relation.SUBSET: ((80, 80, 44), (72, 80, 24)),
}
_WIDTH, _HEIGHT = 160, 250


def relations_figure() -> str:
    """Five pairs of circles with the relation, an example, and K_s, K_d and their product, as inline SVG."""
    rows = np.array([[float(name in findings) for name in FINDINGS] for findings in (ANCHOR, *SAMPLES)])
    relations = [Relation(int(value)) for value in relation_matrix(rows)[0, 1:]]
    similar, dissimilar = similarity_factor(rows)[0, 1:], dissimilarity_factor(rows)[0, 1:]
    panels = [
        _panel(number, *each) for number, each in enumerate(zip(relations, SAMPLES, similar, dissimilar, strict=True))
    ]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {_WIDTH * len(panels)} {_HEIGHT}" role="img" class="relations" '
            'xmlns="http://www.w3.org/2000/svg" font-size="12" text-anchor="middle" fill="currentColor">',
            "<title>The five relations of the label set T of a sample to the label set S of an anchor</title>",
            *panels,
            "</svg>",
        ]
    )


def _panel(number: int, relation: Relation, findings: Sequence[str], similar: float, dissimilar: float) -> str:
    anchor, sample = _CIRCLES[relation]
    lines = [
        f'<g transform="translate({number * _WIDTH} 0)">',
        f'<text x="80" y="20" font-weight="bold">R{int(relation)} {relation.name.lower()}</text>',
        _circle(anchor, "#00796b"),
        _circle(sample, "#ef6c00"),
        *_texts(
            [
                f"T = {', '.join(findings)}",
                f"K_s = {similar:.2f}",
                "K_d: not used" if relation is Relation.DISJOINT else f"K_d = {dissimilar:.2f}",
                "not a positive" if relation is Relation.DISJOINT else f"weight {similar * dissimilar:.2f}",
            ]
        ),
        "</g>",
    ]
    return "\n".join(lines)


def _circle(place: tuple[int, int, int], colour: str) -> str:
    x, y, radius = place
    style = f'fill="{colour}" fill-opacity="0.25" stroke="{colour}" stroke-width="2"'
    return f'<circle cx="{x}" cy="{y}" r="{radius}" {style}/>'


def _texts(lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        size = ' font-size="10"' if len(line) > 24 else ""
        yield f'<text x="80" y="{150 + 22 * number}"{size}>{line}</text>'

"""A page of Markdown as one HTML file: pictures inside, nothing from outside, for light, dark and paper."""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
# The only tags that the templates write; anything else that looks like one is text.
_DETAILS = re.compile(r"<p>&lt;details&gt;&lt;summary&gt;(.*?)&lt;/summary&gt;</p>")
_END_OF_DETAILS = "<p>&lt;/details&gt;</p>"
_PAGE = Environment(loader=PackageLoader("medsd.card"), keep_trailing_newline=True).get_template("page.html")


def html_page(markdown: str, folder: Path, *, title: str) -> str:
    """A whole HTML document.

    Args:
        markdown: the page (CommonMark with tables); HTML in it is shown as text, but for `<details>` with a summary.
        folder: where its pictures are; those below it are put into the page, others are left out.
        title: of the window.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    for token, following in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", re.sub(r"[^a-z0-9]+", "-", following.content.lower()).strip("-"))
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", _picture(folder, str(child.attrGet("src") or "")))
    body = str(reader.renderer.render(tokens, reader.options, {}))
    body = _DETAILS.sub(r"<details><summary>\1</summary>", body).replace(_END_OF_DETAILS, "</details>")
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    return _PAGE.render(title=title, body=body)


def _picture(folder: Path, name: str) -> str:
    """A picture of the folder as a data URI; "" where it is not one."""
    path = (folder / name).resolve()
    kind = _TYPES.get(path.suffix.lower())
    if kind is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return ""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"

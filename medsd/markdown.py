"""Markdown as HTML that fetches nothing and runs nothing, whoever wrote it."""

import base64
import re
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_LARGEST = 2_000_000  # bytes of a picture
# The only tags that our templates write; anything else that looks like one is text.
_DETAILS = re.compile(r"<p>&lt;details&gt;&lt;summary&gt;(.*?)&lt;/summary&gt;</p>")
_END_OF_DETAILS = "<p>&lt;/details&gt;</p>"
_NO_HEADER = re.compile(r"<th( [^>]*)?></th>")  # an empty cell in the head of a table heads nothing


def to_html(markdown: str, folder: Path) -> str:
    """A page of CommonMark with tables as HTML, without a document around it.

    HTML in it is shown as text, but for `<details>` with a summary. Pictures below `folder` are put into the page,
    others are left out.
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
    body = _NO_HEADER.sub(r"<td\1></td>", body)
    return body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def _picture(folder: Path, name: str) -> str:
    """A picture of the folder as a data URI; "" where it is not one."""
    path = folder / name
    kind = _TYPES.get(path.suffix.lower())
    try:
        inside = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
        if kind is None or not inside or path.stat().st_size > _LARGEST:
            return ""
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    except (OSError, ValueError):  # a name that no file can have
        return ""

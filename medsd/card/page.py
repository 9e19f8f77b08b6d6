"""A page of Markdown as one HTML file: pictures inside, nothing from outside, for light, dark and paper."""

from __future__ import annotations

import base64
import html
import re
from itertools import pairwise
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --text: #1a1c1f; --ground: #ffffff; --soft: #f3f4f6; --line: #d4d7dc;
  --mark: #b45309; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e7e9; --ground: #16181b; --soft: #22252a; --line: #3b4048; --mark: #fbbf24; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--ground); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 1.8em 0 .6em; }
h1 { margin-top: .5em; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .25em; }
div.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .35em .6em; text-align: left; vertical-align: top; }
th { background: var(--soft); }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; background: var(--soft); border-radius: 4px; }
code { padding: .1em .3em; overflow-wrap: anywhere; }
pre { padding: .8em; overflow-x: auto; }
pre code { padding: 0; }
blockquote { margin: 1em 0; padding: .1em 1em; border-left: 4px solid var(--mark); background: var(--soft); }
img { max-width: 100%; background: #ffffff; padding: 4px; border-radius: 4px; }
h2#review + div.table table { width: 100%; }
h2#review + div.table td:first-child { width: 16rem; }
h2#review + div.table td { height: 2.6rem; }
@media print {
  :root { --text: #000000; --ground: #ffffff; --soft: #f3f4f6; --line: #999999; --mark: #b45309; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7.5pt; }
  h2, h3 { break-after: avoid; }
  tr, img { break-inside: avoid; }
  h2#review { break-before: page; }
}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
# The only tags that the sections write; anything else that looks like one is text.
_DETAILS = re.compile(r"<p>&lt;details&gt;&lt;summary&gt;(.*?)&lt;/summary&gt;</p>")
_END_OF_DETAILS = "<p>&lt;/details&gt;</p>"


def html_page(markdown: str, folder: Path, *, title: str) -> str:
    """A whole HTML document.

    Args:
        markdown: the page (CommonMark with tables); HTML in it is shown as text, but for `<details>` with a summary.
        folder: where its pictures are; those below it are put into the page, others are left out.
        title: of the window.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    for token, following in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _anchor(following.content))
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", _picture(folder, str(child.attrGet("src") or "")))
    body = str(reader.renderer.render(tokens, reader.options, {}))
    body = _DETAILS.sub(r"<details><summary>\1</summary>", body).replace(_END_OF_DETAILS, "</details>")
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def _picture(folder: Path, name: str) -> str:
    """A picture of the folder as a data URI; "" where it is not one."""
    path = (folder / name).resolve()
    kind = _TYPES.get(path.suffix.lower())
    if kind is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return ""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"

"""A page of Markdown as one HTML file: pictures inside, nothing from outside, for light, dark and paper."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader

from medsd.markdown import to_html

_PAGE = Environment(loader=PackageLoader("medsd.card"), keep_trailing_newline=True).get_template("page.html")


def html_page(markdown: str, folder: Path, *, title: str) -> str:
    """A whole HTML document of `to_html`; `title` is that of the window."""
    return _PAGE.render(title=title, body=to_html(markdown, folder))

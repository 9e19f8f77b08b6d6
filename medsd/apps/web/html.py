"""The HTML of the page, from the Jinja2 templates beside this module. Every value is escaped."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from medsd.inference.words import percent

_FOLDER = Path(__file__).with_name("templates")


def fill(template: str, **values: Any) -> str:
    """The template ``templates/{template}.html`` with these values."""
    return _ENVIRONMENT.get_template(template).render(values)


def _load(name: str) -> str:
    """A template without the line breaks and indents of its source: the page would show some of them as spaces."""
    source = (_FOLDER / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"\n\s*", " ", re.sub(r"(?<=[>}])\n\s*|\n\s*(?=[<{])", "", source))


_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_load), auto_reload=False)
_ENVIRONMENT.filters["percent"] = percent

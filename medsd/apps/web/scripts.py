"""What runs in the browser, and how a component is joined to the server.

Each file in ``scripts/`` is the body of a function that gets `element`, its HTML component, and
`trigger(event, data)`, which calls the server; it runs once, so whatever is drawn anew later is found by delegation or
by an observer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr


def _read(name: str) -> str:
    return (Path(__file__).with_name("scripts") / f"{name}.js").read_text(encoding="utf-8")


HEADER = _read("header")
DROP = _read("drop") + _read("match")
VIEWER = _read("greys") + _read("viewer")
FINDINGS = _read("findings")
BUTTONS = _read("buttons")
CASES = BUTTONS + _read("greys") + _read("beside")
SAVE = _read("save")
MAP = _read("map")


def sent(event: gr.EventData) -> dict[str, Any]:
    """What a script gave to `trigger`; empty where something else called the server, with something else."""
    return event._data if isinstance(event._data, dict) else {}


def html(value: str, name: str, script: str | None = None, **options: Any) -> gr.HTML:
    """A piece of HTML with the id `name`, without Gradio's own styles."""
    return gr.HTML(value, elem_id=name, js_on_load=script, apply_default_css=False, **options)


def handling(queue: str, most: int | None, trigger: str = "always_last") -> dict[str, Any]:
    """How events are handled: at most so many of a queue at once, without Gradio's own sign of progress."""
    return {
        "show_progress": "hidden",
        "trigger_mode": trigger,
        "concurrency_id": queue,
        "concurrency_limit": most,
        "api_visibility": "private",
    }


QUICK = handling("look", 4)
# Each click says something of its own: of two quick ones, "always_last" would repeat the first.
EACH = handling("look", 4, "multiple")
# The look of the image on the page and its key, for the last input of an event; Gradio fills in the others itself.
LOOK = """(...values) => {
  const look = JSON.parse(document.querySelector('#stage').dataset.look || '{}');
  const key = document.querySelector('#radiograph [data-of]')?.dataset.of;
  return [...values.slice(0, -1), {...look, key}];
}"""

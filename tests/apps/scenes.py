"""What the page shows after a handler has given all that it gives."""

from typing import Any

from medsd.apps.web.desk import Desk, Scene
from medsd.apps.web.seat import Seat

NOTHING = Scene()


def read(desk: Desk, seat: Seat, *wish: Any) -> Scene:
    """The scene after all stages of what a tab wants read; `NOTHING` where nothing is shown."""
    shown = NOTHING
    for scene in desk.read(seat, *wish):
        new = {name: value for name, value in scene._asdict().items() if value != getattr(NOTHING, name)}
        shown = shown._replace(**new)
    return shown

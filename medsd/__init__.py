"""Multi-label reading of chest radiographs with clinical notes; see README.md and `medsd.cli`.

    from medsd import Predictor, Bundle, CaseIndex

The names are loaded when they are first used, so that `import medsd` costs nothing. It changes one thing outside of
itself: the environment variables of `medsd.telemetry.REPORTING_OFF`. Some libraries report their use from the moment
they are imported, and others import them (MONAI imports MLflow), so any later place would be too late.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medsd.telemetry import stop_reports

if TYPE_CHECKING:
    from medsd.bundle.layout import Bundle
    from medsd.cases.index import CaseIndex
    from medsd.inference.predict import Predictor

    __version__: str

stop_reports()

__all__ = ["Bundle", "CaseIndex", "Predictor", "__version__"]

_HOMES = {
    "Bundle": "medsd.bundle.layout",
    "CaseIndex": "medsd.cases.index",
    "Predictor": "medsd.inference.predict",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("medsd")
    if name not in _HOMES:
        raise AttributeError(f"module 'medsd' has no attribute '{name}'; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

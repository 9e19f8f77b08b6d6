"""Sources of studies, a module a data set; `read_source` picks the one that the settings name."""

from __future__ import annotations

from medsd.settings import Nih14Source, PhantomSource, Settings
from medsd.studies.manifest import Manifest


def read_source(settings: Settings) -> Manifest:
    """Read the data set that `settings.data` names and split it by patient.

    Raises:
        DataError: the folder or a file in it is missing or not what the data set publishes.
    """
    match settings.data:
        case Nih14Source():
            from medsd.studies.sources import nih14

            return nih14.read(settings.data, settings.splits)
        case PhantomSource():
            from medsd.studies.sources import phantom

            return phantom.read(settings.data, settings.splits)

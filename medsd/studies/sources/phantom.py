"""Synthetic studies of `medsd.studies.phantom`, written to a folder once and split by patient like any other source."""

import os

from medsd.findings import finding_set
from medsd.settings import PhantomSource, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.phantom import write_phantom
from medsd.studies.sources.tables import manifest_of


def read(settings: PhantomSource, splits: SplitSettings) -> Manifest:
    """Write the studies that are not there yet and list them all."""
    findings = finding_set("phantom8")
    workers = min(os.cpu_count() or 1, 16)
    table = write_phantom(
        settings.root, count=settings.count, seed=settings.seed, size=settings.image_size, workers=workers
    )
    return manifest_of(table, findings, settings.root, splits)

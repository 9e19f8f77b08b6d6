"""Several sources as one training set: `data: {source: merge, sources: [{source: nih14, root: …}, …]}`.

Each source is read as it would be alone, its labels are carried over into the finding set of the settings, and the
tables are joined. A source that follows an official list or split keeps it; the patients of all others are dealt
together. Studies and patients get the source's name in front ("nih14:13"), since data sets number their patients alike.
In two folders of one data set, or two tables of one name, a number is one patient, who stays in one split; their
studies are told apart ("nih14", "nih14-2"). Paths are relative to the folder that all sources have in common.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from medsd.errors import DataError
from medsd.settings import CsvSource, MergeSource, Settings, SingleSource
from medsd.studies.manifest import SELECTED, Manifest
from medsd.studies.rejected import Rejections
from medsd.studies.splits import by_use, deal


def read(settings: MergeSource, whole: Settings, read_one: Callable[[Settings], Manifest]) -> Manifest:
    """Read each source with `read_one` (`medsd.studies.sources.read_source`) and join them; errors name the source."""
    kinds, manifests = [_kind(source) for source in settings.sources], []
    before = [kinds[:at].count(kind) for at, kind in enumerate(kinds)]
    names = [f"{kind}-{count + 1}" if count else kind for kind, count in zip(kinds, before, strict=True)]
    for name, source in zip(names, settings.sources, strict=True):
        try:
            manifests.append(read_one(whole.model_copy(update={"data": source})))
        except DataError as error:
            raise DataError(f"data.sources, {name}: {error}") from error
    root = Path(os.path.commonpath([manifest.root.resolve() for manifest in manifests]))
    table = pd.concat(
        [_placed(name, kind, manifest, root) for name, kind, manifest in zip(names, kinds, manifests, strict=True)],
        ignore_index=True,
    )
    dealt = np.repeat([_is_dealt(source) for source in settings.sources], [len(manifest) for manifest in manifests])
    listed = table[~dealt].dropna(subset="split").drop_duplicates("patient").set_index("patient")["split"]
    listed = listed.replace(SELECTED, "test")
    followed = table["patient"].isin(listed.index).to_numpy() & dealt
    table.loc[followed, "split"] = table.loc[followed, "patient"].map(listed)
    table["split"] = by_use(table["split"].to_numpy(), table["use"].fillna("").to_numpy(dtype=str))
    dealt &= ~followed
    if sum(_is_dealt(source) for source in settings.sources) > 1 and dealt.any():
        table.loc[dealt, "split"] = deal(table[dealt], list(manifests[0].findings), whole.splits)
    rejected = Rejections()
    for name, manifest in zip(names, manifests, strict=True):
        for _, path, reason, message in manifest.rejected.entries:
            rejected.add(0, f"{name}:{path}", reason, message)  # rows are counted in tables of their own
        rejected.splits.update(manifest.rejected.splits)
    return Manifest(table, manifests[0].findings, root, rejected, dealt=all(manifest.dealt for manifest in manifests))


def _kind(source: SingleSource) -> str:
    """Whose numbers the patients have."""
    return source.name if isinstance(source, CsvSource) else source.source


def _is_dealt(source: SingleSource) -> bool:
    """Whether medsd chooses the test set: no official list or split is asked for."""
    if isinstance(source, CsvSource):
        return source.columns.split is None
    return not getattr(source, "official_split", False)


def _placed(name: str, kind: str, manifest: Manifest, root: Path) -> pd.DataFrame:
    """The table with the source's name before studies, its kind before patients, and paths from `root` on."""
    below = manifest.root.resolve().relative_to(root)
    table = manifest.table.copy()
    for column, before in (("study", name), ("patient", kind)):
        table[column] = before + ":" + table[column].astype(str)
    table["path"] = table["path"].map(lambda path: (below / path).as_posix(), na_action="ignore")
    return table

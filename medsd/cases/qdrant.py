"""Cases in a Qdrant collection, for those who run a served, replicated cluster; LanceDB embedded is the default.

`QdrantStore` is a `medsd.cases.index.CaseStore`, reached by ``qdrant+http://host:6333/NAME``; the secret of a server
that asks for one comes from the variable MEDSD_QDRANT_API_KEY. NAME is an alias: a new index, and one without a removed
patient, is written into a collection beside it and takes its place in one step, so a reader sees the old or the new.
Searches are exact. Unlike a folder, a collection has no lock: let one process write at a time.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, FloatArray, Hit
from medsd.cases.described import IndexDescription
from medsd.cases.exact import Positions, Snapshot, nearest_distinct
from medsd.cases.qdrant_points import TEXT, case_of, condition_of, labels_of, points_of, value_is
from medsd.cases.removals import Removals
from medsd.cases.rows import BLOCK, KEYS, case_table, check_batch, read_description_json
from medsd.errors import BundleError, DataError, DependencyError

if TYPE_CHECKING:
    import pandas as pd

API_KEY = "MEDSD_QDRANT_API_KEY"
SCHEME = "qdrant+"
METADATA, REMOVALS = "medsd", "removals"  # of the collection: the description, and who was removed, as JSON
INDEXED = ("study_key", "patient_key", *FILTER_COLUMNS, "present", "absent")  # payload that filters ask for
_LARGE = ("thumbnail", "note_excerpt")
_TIMEOUT_S = 60
_TRIES = 4  # when the collection behind the alias has just been exchanged

Answer = TypeVar("Answer")


class QdrantStore:
    """Cases behind an alias of a Qdrant server.

    Args:
        client: a `qdrant_client.QdrantClient`.
        name: the alias.

    Raises:
        BundleError: there is no such alias, or it is no case index of medsd.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self.name = name
        self._description = _metadata(client, name)[0]
        self._findings = self._description.vocabulary

    @classmethod
    def open(cls, path: str | Path) -> QdrantStore:
        """Open ``qdrant+http://host:port/name``; raises BundleError, or DependencyError without the extra."""
        return cls(*connect(str(path)))

    @classmethod
    def create(
        cls,
        path: str | Path,
        cases: Iterable[Case],
        embeddings: FloatArray,
        description: IndexDescription,
        *,
        replace: bool = False,
    ) -> QdrantStore:
        """Write a new index; see `medsd.cases.index.create_index`."""
        return cls.create_with(*connect(str(path)), cases, embeddings, description, replace=replace)

    @classmethod
    def create_with(
        cls,
        client: Any,
        name: str,
        cases: Iterable[Case],
        embeddings: FloatArray,
        description: IndexDescription,
        *,
        replace: bool = False,
    ) -> QdrantStore:
        """`create` by a client that is open already."""
        old = _behind(client, name)
        if old is not None and not replace:
            raise BundleError(f"{name}: there is a case index already; remove it, or ask to replace it")
        if old is None and client.collection_exists(name):
            raise BundleError(f"{name}: something else is here; give an index a name of its own")
        removals = _metadata(client, name)[1] if old else Removals()
        _exchange(client, name, description, removals, old, _checked(cases, embeddings, description, removals))
        return cls(client, name)

    @property
    def description(self) -> IndexDescription:
        return self._description

    def __len__(self) -> int:
        return int(self._retrying(lambda: self._client.count(self.name, exact=True)).count)

    def search(
        self,
        embedding: FloatArray,
        k: int,
        *,
        filters: CaseFilter | None,
        exclude_patients: Sequence[str],
        exclude_studies: Sequence[str],
        exact: bool = False,
    ) -> list[Hit]:
        """The k nearest cases, always by exact search; see `medsd.cases.index.CaseStore`."""
        from qdrant_client import models

        condition = condition_of(filters, exclude_patients, exclude_studies)
        points: list[Any] = []

        def find(count: int) -> tuple[Positions, list[str], FloatArray]:
            nonlocal points
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Local mode", category=UserWarning)  # exact there anyway
                points = self._client.query_points(
                    self.name,
                    query=embedding.tolist(),
                    query_filter=condition,
                    search_params=models.SearchParams(exact=True),
                    limit=count,
                    with_payload=True,
                    with_vectors=True,
                ).points
            return np.arange(len(points)), [p.payload["study_key"] for p in points], self._vectors(points)

        def ask() -> list[Hit]:
            self._check_still_ours()
            chosen = [points[place] for place in nearest_distinct(find, k)]
            vectors = self._vectors(chosen)
            similarities = (vectors @ embedding).clip(-1, 1).tolist()
            return list(map(Hit, map(self._case, chosen), similarities, vectors))

        return self._retrying(ask)

    def matching(self, wanted: FloatArray, k: int, *, filters: CaseFilter | None) -> list[Hit]:
        """The k cases whose findings fit a wanted set best; see `medsd.cases.index.CaseStore`."""

        def ask() -> list[Hit]:
            self._check_still_ours()
            # What the filter bars stays on the server; the rest is put in order here, by the library's own rules.
            points = list(self._points(condition_of(filters), without=_LARGE, vectors=True))
            snapshot = self._snapshot(points)
            embeddings = snapshot.embeddings
            assert embeddings is not None
            positions, typical = snapshot.matching(wanted, k, self._findings, None, lambda places: embeddings[places])
            ids = [points[place].id for place in positions]
            full = {p.id: p for p in self._client.retrieve(self.name, ids, with_payload=True)} if ids else {}
            cases = [self._case(full[each]) for each in ids]
            return list(map(Hit, cases, typical.clip(-1, 1).tolist(), embeddings[positions]))

        return self._retrying(ask)

    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        """Every case with its embedding (D,), in the order of `embeddings`, a block at a time."""
        for point in self._points(None, vectors=True):
            yield self._case(point), np.asarray(point.vector, np.float32)

    def embeddings(self) -> FloatArray:
        """All embeddings (N, D), in the order of the points' numbers."""
        return self._retrying(lambda: self._vectors(list(self._points(None, only=["study_key"], vectors=True))))

    def table(self) -> pd.DataFrame:
        """Everything but embeddings, thumbnails and notes, a row a case."""
        snapshot = self._retrying(lambda: self._snapshot(list(self._points(None, without=_LARGE))))
        return case_table(snapshot, self._findings)

    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """The values that occur in each of `FILTER_COLUMNS`, sorted."""

        def ask() -> dict[str, tuple[str, ...]]:
            facets = {c: self._client.facet(self.name, key=c, limit=10_000, exact=True).hits for c in FILTER_COLUMNS}
            return {column: tuple(sorted(str(hit.value) for hit in hits)) for column, hits in facets.items()}

        return self._retrying(ask)

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        """Append cases: all of them in one request up to `BLOCK`, and block by block beyond."""
        removals = self._retrying(lambda: _metadata(self._client, self.name))[1]
        # Checked as a whole before anything is written.
        blocks = list(_checked(cases, embeddings, self.description, removals))
        collection = self._retrying(lambda: _behind(self._client, self.name))
        for block in blocks:
            self._client.upsert(collection, points_of(block, self._findings.names), wait=True)
        return sum(map(len, blocks))

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases from every answer at once, then write the others into a new collection.

        The old collection is deleted with its files. Snapshots that an administrator has made of it are theirs to
        delete.
        """
        from qdrant_client import models

        if not patient_key:
            raise DataError("remove: give the patient's key; an empty one would mean every case without a patient")
        theirs = models.Filter(must=[value_is("patient_key", patient_key)])
        studies = [p.payload["study_key"] for p in self._points(theirs, only=["study_key"])]
        self._remember(_metadata(self._client, self.name)[1].with_patient(patient_key, studies))
        if studies:
            self._client.delete(self.name, models.FilterSelector(filter=theirs), wait=True)
            self.compact()
        return len(studies)

    def readmit_patient(self, patient_key: str) -> bool:
        """Let a removed patient be added again; see `medsd.cases.index.CaseStore`."""
        removals = _metadata(self._client, self.name)[1]
        if held := removals.holds(patient_key):
            self._remember(removals.without_patient(patient_key))
        return held

    def compact(self, *, approximate_above: int | None = None) -> None:
        """Write the cases into a new collection and delete the old one; the search stays exact whatever is asked."""
        old, removals = _behind(self._client, self.name), _metadata(self._client, self.name)[1]
        _exchange(self._client, self.name, self.description, removals, old, _blocks(self.records()))

    def _remember(self, removals: Removals) -> None:
        collection = _behind(self._client, self.name)
        self._client.update_collection(collection, metadata={REMOVALS: json.dumps(removals.as_dict())})

    def _points(
        self,
        condition: Any,
        *,
        only: list[str] | None = None,
        without: Sequence[str] = (),
        vectors: bool = False,
    ) -> Iterator[Any]:
        """All points that fulfil a condition, in the order of their numbers, a block at a time."""
        from qdrant_client import models

        payload: Any = only if only is not None else models.PayloadSelectorExclude(exclude=list(without))
        offset: Any = None
        while True:
            points, offset = self._client.scroll(
                self.name, condition, limit=BLOCK, offset=offset, with_payload=payload, with_vectors=vectors
            )
            yield from points
            if offset is None:
                return

    def _snapshot(self, points: Sequence[Any]) -> Snapshot:
        """The points as `Snapshot` holds a version; without vectors, its embeddings are empty."""
        import pyarrow as pa

        columns = {name: pa.array([p.payload[name] for p in points], pa.string()) for name in TEXT}
        labels = [labels_of(p.payload, self._findings.names) for p in points]
        return Snapshot(
            row_ids=np.arange(len(points), dtype=np.uint64),
            embeddings=self._vectors(points) if points and points[0].vector is not None else self._vectors([]),
            labels=np.stack(labels) if labels else np.zeros((0, len(self._findings)), np.float32),
            keys={name: columns[name] for name in KEYS},
            categories={name: columns[name].dictionary_encode() for name in FILTER_COLUMNS},
        )

    def _vectors(self, points: Sequence[Any]) -> FloatArray:
        size = self.description.embedding_size
        return np.array([p.vector for p in points], dtype=np.float32).reshape(len(points), size)

    def _case(self, point: Any) -> Case:
        return case_of(point.payload, self._findings)

    def _check_still_ours(self) -> None:
        now = _metadata(self._client, self.name)[0]
        if now.model_sha256 != self.description.model_sha256 or now.findings != self.description.findings:
            raise BundleError(f"{self.name}: the case index was replaced by one of another model; open it again")

    def _retrying(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again when a writer has just exchanged the collection; a server that stays away is named."""
        for attempt in range(_TRIES):
            try:
                return ask()
            except (BundleError, DataError):
                raise
            except Exception as error:  # the client raises its own kinds, httpx's and bare ValueErrors
                if attempt == _TRIES - 1:
                    raise BundleError(f"{self.name}: Qdrant does not answer ({type(error).__name__})") from None
                time.sleep(0.05 * 4**attempt)
        raise AssertionError("unreachable")


def connect(uri: str) -> tuple[Any, str]:
    """A client and the alias that ``qdrant+http://host:port/name`` means.

    Raises:
        BundleError: the URI is not of this form.
        DependencyError: qdrant-client is not installed.
    """
    parts = urlsplit(uri.removeprefix(SCHEME))
    name = parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not name or "/" in name or parts.username:
        raise BundleError(f"a Qdrant index is named {SCHEME}http://host:6333/NAME, secrets by {API_KEY}")
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise DependencyError(
            "an index on a Qdrant server needs qdrant-client; install it with: pip install 'medsd[qdrant]'"
        ) from None
    secret = os.environ.get(API_KEY)
    if secret and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise BundleError(f"{API_KEY} is set, and would travel in the open; use {SCHEME}https")
    port = parts.port or (443 if parts.scheme == "https" else 6333)
    url = f"{parts.scheme}://{parts.hostname}:{port}"
    return QdrantClient(url=url, api_key=secret, timeout=_TIMEOUT_S, check_compatibility=False), name


def _behind(client: Any, name: str) -> str | None:
    """The collection that the alias stands for; None where there is no such alias."""
    return next((a.collection_name for a in client.get_aliases().aliases if a.alias_name == name), None)


def _metadata(client: Any, name: str) -> tuple[IndexDescription, Removals]:
    """What an index says of itself, and who was removed from it."""
    try:
        collection = _behind(client, name)
        metadata = None if collection is None else client.get_collection(collection).config.metadata
    except Exception as error:
        raise BundleError(f"{name}: Qdrant does not answer ({type(error).__name__})") from None
    if collection is None:
        raise BundleError(f"{name}: no case index here; make one with `medsd index`")
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise BundleError(f"{name}: a Qdrant collection, but no case index of medsd")
    try:
        return read_description_json(text, name), Removals.of(json.loads((metadata or {})[REMOVALS]))
    except (KeyError, TypeError, ValueError):
        raise BundleError(f"{name}: the list of removed patients cannot be read; make the case index anew") from None


def _exchange(
    client: Any,
    name: str,
    description: IndexDescription,
    removals: Removals,
    old: str | None,
    blocks: Iterable[list[tuple[Case, Any]]],
) -> None:
    """Write a collection and put it behind the alias in one step; what was there before is deleted."""
    from qdrant_client import models

    new = f"{name}.{uuid.uuid4().hex[:12]}"
    client.create_collection(
        new,
        vectors_config=models.VectorParams(size=description.embedding_size, distance=models.Distance.DOT),
        metadata={METADATA: description.model_dump_json(), REMOVALS: json.dumps(removals.as_dict())},
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes", category=UserWarning)  # none in local mode
            for column in INDEXED:
                client.create_payload_index(new, column, models.PayloadSchemaType.KEYWORD, wait=True)
        names = description.vocabulary.names
        for block in blocks:
            client.upsert(new, points_of(block, names), wait=True)
        actions: list[Any] = []
        if old is not None:
            actions.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
        alias = models.CreateAlias(collection_name=new, alias_name=name)
        actions.append(models.CreateAliasOperation(create_alias=alias))
        client.update_collection_aliases(change_aliases_operations=actions)
    except BaseException:
        client.delete_collection(new)
        raise
    if old is not None:
        client.delete_collection(old)


def _checked(
    cases: Iterable[Case], embeddings: FloatArray, description: IndexDescription, removals: Removals
) -> Iterator[list[tuple[Case, FloatArray]]]:
    """Blocks of cases with their embeddings, under the same checks as a LanceDB table's; no removed patient's."""
    vectors, rest, start = np.asarray(embeddings, dtype=np.float32), iter(cases), 0
    check_batch([], vectors, description)
    while block := list(islice(rest, BLOCK)):
        check_batch(block, vectors[start : start + len(block)], description)
        pairs = zip(block, vectors[start : start + len(block)], strict=True)
        if kept := [pair for pair in pairs if not removals.bars(pair[0])]:
            yield kept
        start += len(block)
    if start < len(vectors):
        raise DataError(f"case index: {start} cases for {len(vectors)} embeddings")


def _blocks(records: Iterator[tuple[Case, FloatArray]]) -> Iterator[list[tuple[Case, FloatArray]]]:
    while block := list(islice(records, BLOCK)):
        yield block

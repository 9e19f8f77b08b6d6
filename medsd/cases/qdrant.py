"""Cases in a Qdrant collection, for those who run a served, replicated cluster; LanceDB is the default.

An index is reached by ``qdrant+http://host:6333/NAME``; the secret of a server that asks for one comes from the
variable MEDSD_QDRANT_API_KEY. NAME is an alias: a new index, and one without a removed patient, is written into a
collection beside it and takes its place in one step, so a reader sees the old or the new. Searches are exact. A
collection has no lock: let one process write at a time.
"""

import base64
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, Excluded, FloatArray, Hit
from medsd.cases.described import IndexDescription
from medsd.cases.exact import Positions, Snapshot, nearest_distinct
from medsd.cases.index import CaseIndex, NewCases
from medsd.cases.removals import Removals
from medsd.cases.rows import BLOCK, MEDIA, TEXT, Block, cases_of, checked_blocks, read_description
from medsd.errors import BundleError, DependencyError, explained
from medsd.findings import FindingSet

try:
    from qdrant_client import QdrantClient, models
except ImportError:
    raise DependencyError(
        "an index on a Qdrant server needs qdrant-client; install it with: pip install 'medsd[qdrant]'"
    ) from None

API_KEY = "MEDSD_QDRANT_API_KEY"
SCHEME = "qdrant+"
METADATA, REMOVALS = "medsd", "removals"  # of the collection: the description, and who was removed, as JSON
INDEXED = ("study_key", "patient_key", *FILTER_COLUMNS, "present", "absent")  # payload that filters ask for
_TIMEOUT_S = 60


class QdrantIndex(CaseIndex):
    """Cases behind an alias of a Qdrant server, by a `qdrant_client.QdrantClient`.

    Raises BundleError if there is no such alias, or it is no case index of medsd.
    """

    _pauses = (0.05, 0.2, 0.8)  # after the collection behind the alias was exchanged
    # The client raises its own errors, httpx's and bare ValueErrors, so `_stale` stays Exception.

    def __init__(self, path: str | Path, client: Any = None) -> None:
        """With a `client` that is open already, `path` is the name of the alias; in `create`, too."""
        self._client, name = connect(str(path)) if client is None else (client, str(path))
        super().__init__(name)
        self._follow(_metadata(self._client, name)[0])

    @classmethod
    def create(cls, path: str | Path, new: NewCases, *, replace: bool, client: Any = None) -> Self:
        client, name = connect(str(path)) if client is None else (client, str(path))
        old = _behind(client, name)
        if old is not None and not replace:
            raise BundleError(f"{name}: there is a case index already; remove it, or ask to replace it")
        if old is None and client.collection_exists(name):
            raise BundleError(f"{name}: something else is here; give an index a name of its own")
        removals = _metadata(client, name)[1] if old else Removals()
        _exchange(client, name, new.description, removals, old, checked_blocks(*new, removals))
        return cls(name, client)

    def __len__(self) -> int:
        return int(self._retrying(lambda: self._client.count(self.uri, exact=True)).count)

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        def ask() -> dict[str, tuple[str, ...]]:
            facets = {c: self._client.facet(self.uri, key=c, limit=10_000, exact=True).hits for c in FILTER_COLUMNS}
            return {column: tuple(sorted(str(hit.value) for hit in hits)) for column, hits in facets.items()}

        return self._retrying(ask)

    def _search(
        self, embedding: FloatArray, k: int, filters: CaseFilter | None, excluded: Excluded, *, exact: bool
    ) -> list[Hit]:
        self._follow(_metadata(self._client, self.uri)[0])
        condition = condition_of(filters, excluded)
        points: list[Any] = []

        def find(count: int) -> tuple[Positions, list[str], FloatArray]:
            nonlocal points
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Local mode", category=UserWarning)  # exact there anyway
                points = self._client.query_points(
                    self.uri,
                    query=embedding.tolist(),
                    query_filter=condition,
                    search_params=models.SearchParams(exact=True),
                    limit=count,
                    with_payload=True,
                    with_vectors=True,
                ).points
            return np.arange(len(points)), [p.payload["study_key"] for p in points], self._vectors(points)

        chosen = [points[place] for place in nearest_distinct(find, k)]
        vectors = self._vectors(chosen)
        return list(map(Hit, self._cases(chosen), (vectors @ embedding).clip(-1, 1).tolist(), vectors))

    def _matching(self, wanted: FloatArray, k: int, filters: CaseFilter | None) -> list[Hit]:
        """What the filter bars stays on the server; the rest is put in order here."""
        self._follow(_metadata(self._client, self.uri)[0])
        points = list(self._points(condition_of(filters, {}), without=MEDIA, vectors=True))
        embeddings = self._vectors(points)
        positions, typical = self._snapshot(points).matching(
            wanted, k, self.findings, None, lambda places: embeddings[places]
        )
        ids = [points[place].id for place in positions]
        full = {p.id: p for p in self._client.retrieve(self.uri, ids, with_payload=True)} if ids else {}
        cases = self._cases([full[each] for each in ids])
        return list(map(Hit, cases, typical.clip(-1, 1).tolist(), embeddings[positions]))

    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        points = self._points(None, vectors=True)
        while block := list(islice(points, BLOCK)):
            yield from zip(self._cases(block), self._vectors(block), strict=True)

    def embeddings(self) -> FloatArray:
        return self._retrying(lambda: self._vectors(list(self._points(None, only=["study_key"], vectors=True))))

    def _facts(self) -> Snapshot:
        return self._snapshot(list(self._points(None, without=MEDIA)))

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        """All of them go in one request up to `BLOCK`, and block by block beyond."""
        removals = self._retrying(lambda: _metadata(self._client, self.uri))[1]
        # Checked as a whole before anything is written.
        blocks = list(checked_blocks(cases, embeddings, self.description, removals))
        collection = self._retrying(lambda: _behind(self._client, self.uri))
        for block in blocks:
            self._client.upsert(collection, points_of(block, self.findings), wait=True)
        return sum(len(block[0]) for block in blocks)

    def _remove(self, patient_key: str) -> int:
        """Remove a patient's cases from every answer at once, then write the others into a new collection.

        The old collection is deleted with its files. Snapshots that an administrator has made of it are theirs to
        delete.
        """
        theirs = models.Filter(must=[value_is("patient_key", patient_key)])
        studies = [p.payload["study_key"] for p in self._points(theirs, only=["study_key"])]
        self._remember(_metadata(self._client, self.uri)[1].with_patient(patient_key, studies))
        if studies:
            self._client.delete(self.uri, models.FilterSelector(filter=theirs), wait=True)
            self.compact()
        return len(studies)

    def readmit_patient(self, patient_key: str) -> bool:
        removals = _metadata(self._client, self.uri)[1]
        if held := removals.holds(patient_key):
            self._remember(removals.without_patient(patient_key))
        return held

    def compact(self, *, approximate_above: int | None = None) -> None:
        """Write the cases into a new collection and delete the old one; the search stays exact."""
        old, removals = _behind(self._client, self.uri), _metadata(self._client, self.uri)[1]
        _exchange(self._client, self.uri, self.description, removals, old, self._blocks())

    def _blocks(self) -> Iterator[Block]:
        records = self.records()
        while block := list(islice(records, BLOCK)):
            cases = [case for case, _ in block]
            yield cases, np.stack([case.labels for case in cases]), np.stack([vector for _, vector in block])

    def _remember(self, removals: Removals) -> None:
        collection = _behind(self._client, self.uri)
        self._client.update_collection(collection, metadata={REMOVALS: removals.model_dump_json()})

    def _points(
        self, condition: Any, *, only: list[str] | None = None, without: Sequence[str] = (), vectors: bool = False
    ) -> Iterator[Any]:
        """All points that fulfil a condition, in the order of their numbers, a block at a time."""
        payload: Any = only if only is not None else models.PayloadSelectorExclude(exclude=list(without))
        offset: Any = None
        while True:
            points, offset = self._client.scroll(
                self.uri, condition, limit=BLOCK, offset=offset, with_payload=payload, with_vectors=vectors
            )
            yield from points
            if offset is None:
                return

    def _snapshot(self, points: Sequence[Any]) -> Snapshot:
        labels = [labels_of(p.payload, self.findings) for p in points]
        return Snapshot(
            row_ids=np.arange(len(points), dtype=np.uint64),
            embeddings=None,
            labels=np.stack(labels) if labels else np.zeros((0, len(self.findings)), np.float32),
            attributes=pa.table({name: pa.array([p.payload[name] for p in points], pa.string()) for name in TEXT}),
        )

    def _vectors(self, points: Sequence[Any]) -> FloatArray:
        size = self.description.embedding_size
        return np.array([p.vector for p in points], dtype=np.float32).reshape(len(points), size)

    def _cases(self, points: Sequence[Any]) -> list[Case]:
        labels = [labels_of(point.payload, self.findings) for point in points]
        return cases_of([fields_of(point.payload) for point in points], labels, self.findings)

    def _why(self, error: Exception) -> str:
        return f"Qdrant does not answer ({type(error).__name__})"


def connect(uri: str) -> tuple[Any, str]:
    """A client and the alias that ``qdrant+http://host:port/name`` means; raises BundleError for other URIs."""
    parts = urlsplit(uri.removeprefix(SCHEME))
    name = parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not name or "/" in name or parts.username:
        raise BundleError(f"a Qdrant index is named {SCHEME}http://host:6333/NAME, secrets by {API_KEY}")
    secret = os.environ.get(API_KEY)
    if secret and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise BundleError(f"{API_KEY} is set, and would travel in the open; use {SCHEME}https")
    port = parts.port or (443 if parts.scheme == "https" else 6333)
    url = f"{parts.scheme}://{parts.hostname}:{port}"
    return QdrantClient(url=url, api_key=secret, timeout=_TIMEOUT_S, check_compatibility=False), name


def points_of(block: Block, findings: FindingSet) -> list[models.PointStruct]:
    """Points with random numbers; an unknown finding stands neither under present nor under absent."""
    return [
        models.PointStruct(
            id=str(uuid.uuid4()),
            vector=vector.tolist(),
            payload={
                **{name: getattr(case, name) for name in TEXT},
                "present": [name for name, value in zip(findings, labels, strict=True) if value == 1],
                "absent": [name for name, value in zip(findings, labels, strict=True) if value == 0],
                "thumbnail": None if case.thumbnail is None else base64.b64encode(case.thumbnail).decode(),
                "note_excerpt": case.note_excerpt,
            },
        )
        for case, labels, vector in zip(*block, strict=True)
    ]


def fields_of(payload: dict[str, Any]) -> dict[str, Any]:
    """Text and media of a payload."""
    picture = payload.get("thumbnail")
    media = {"thumbnail": picture and base64.b64decode(picture), "note_excerpt": payload.get("note_excerpt")}
    return {name: payload[name] for name in TEXT} | media


def labels_of(payload: dict[str, Any], findings: FindingSet) -> FloatArray:
    """The labels (F,) of a payload: 1, 0, NaN."""
    present, absent = set(payload["present"]), set(payload["absent"])
    return np.array([1.0 if n in present else 0.0 if n in absent else np.nan for n in findings], np.float32)


def condition_of(filters: CaseFilter | None, excluded: Excluded) -> models.Filter | None:
    """The filter as Qdrant takes it; None if all may be found."""
    filters = filters or CaseFilter()
    must: list[Any] = [value_is("present", name) for name in filters.present]
    must += [value_is("absent", name) for name in filters.absent]
    for column in FILTER_COLUMNS:
        if values := getattr(filters, column):
            must.append(models.FieldCondition(key=column, match=models.MatchAny(any=list(values))))
    barred: list[Any] = [value_is(column, key) for column, keys in excluded.items() for key in keys]
    return models.Filter(must=must or None, must_not=barred or None) if must or barred else None


def value_is(key: str, value: str) -> models.FieldCondition:
    """The condition that `key` has this value, or has it among others."""
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _behind(client: Any, name: str) -> str | None:
    """The collection that the alias stands for; None if there is no such alias."""
    return next((a.collection_name for a in client.get_aliases().aliases if a.alias_name == name), None)


def _metadata(client: Any, name: str) -> tuple[IndexDescription, Removals]:
    """What an index says of itself, and who was removed from it."""
    with explained(f"{name}: Qdrant does not answer", Exception, raises=BundleError):
        collection = _behind(client, name)
        metadata = None if collection is None else client.get_collection(collection).config.metadata
    if collection is None:
        raise BundleError(f"{name}: no case index here; make one with `medsd index`")
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise BundleError(f"{name}: a Qdrant collection, but no case index of medsd")
    try:
        return read_description(text, name), Removals.model_validate_json((metadata or {})[REMOVALS])
    except (KeyError, ValueError):
        raise BundleError(f"{name}: the list of removed patients cannot be read; make the case index anew") from None


def _exchange(
    client: Any, name: str, description: IndexDescription, removals: Removals, old: str | None, blocks: Iterable[Block]
) -> None:
    """Write a collection and put it behind the alias in one step; what was there before is deleted."""
    new = f"{name}.{uuid.uuid4().hex[:12]}"
    client.create_collection(
        new,
        vectors_config=models.VectorParams(size=description.embedding_size, distance=models.Distance.DOT),
        metadata={METADATA: description.model_dump_json(), REMOVALS: removals.model_dump_json()},
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes", category=UserWarning)  # none in local mode
            for column in INDEXED:
                client.create_payload_index(new, column, models.PayloadSchemaType.KEYWORD, wait=True)
        for block in blocks:
            client.upsert(new, points_of(block, description.vocabulary), wait=True)
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

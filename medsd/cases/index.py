"""The index of earlier cases: `CaseIndex.open(path).similar(prediction)` gives the nearest ones and how each relates.

Begin at `CaseIndex`. Behind it stands a `CaseStore`; `medsd.cases.lance` is the embedded one, a folder or an object
store's URI, `medsd.cases.qdrant` a collection of a Qdrant server. An index knows which model made its embeddings and
answers no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, FloatArray, Hit, SimilarCase, age_band
from medsd.cases.described import APPROXIMATE_ABOVE, IndexDescription, SimilarityScale, VoteRule
from medsd.cases.explain import explain, explain_query
from medsd.cases.query import FindingQuery
from medsd.cases.vote import NEAREST, FindingVote, ballot
from medsd.errors import BundleError, DataError
from medsd.findings import FindingSet
from medsd.inference.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "OWN_PATIENT", "Case", "CaseFilter", "CaseIndex", "CaseStore", "FindingQuery", "FindingVote", "Hit",
    "IndexDescription", "SimilarCase", "age_band", "create_index",
]  # fmt: skip

OWN_PATIENT = "the prediction's own patient"


class CaseStore(Protocol):
    """What an index needs of the place where its cases lie. Every method answers from the latest version."""

    @property
    def description(self) -> IndexDescription: ...

    def __len__(self) -> int: ...

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
        """The k cases of largest cosine to `embedding` (D,) of unit length, nearest first.

        The search is exact, unless the store has an approximate index and `exact` is not set. Duplicates
        (`medsd.cases.exact.distinct`) are collapsed. An empty key excludes
        nothing. `filters` has been checked against the vocabulary.
        """

    def matching(self, wanted: FloatArray, k: int, *, filters: CaseFilter | None) -> list[Hit]:
        """The k cases whose findings fit the set `wanted` (F,) best; see `medsd.cases.exact.Snapshot.matching`."""

    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        """Every case with its embedding (D,)."""

    def embeddings(self) -> FloatArray:
        """All embeddings (N, D)."""

    def table(self) -> pd.DataFrame:
        """Everything but embeddings, thumbnails and notes, in the order of `embeddings`."""

    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """The values that occur in each of `FILTER_COLUMNS`, sorted."""

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        """Append cases but those of removed patients; returns how many were added."""

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases, and keep a keyed hash that bars the patient; returns how many cases went."""

    def readmit_patient(self, patient_key: str) -> bool:
        """Let a removed patient be added again; returns whether this one was removed."""

    def compact(self, *, approximate_above: int | None = None) -> float | None: ...


class CaseIndex:
    """Earlier cases in the learned space of one model. Several threads may search one index at a time.

    Args:
        store: where the cases lie.
    """

    def __init__(self, store: CaseStore) -> None:
        self.store = store

    @classmethod
    def open(cls, path: str | Path, *, model_sha256: str | None = None) -> CaseIndex:
        """Open an index.

        Args:
            path: a folder, or a URI that LanceDB reads (``s3://…``); it may be read-only. Or a Qdrant collection,
                ``qdrant+http://host:6333/collection`` (or ``qdrant+https``).
            model_sha256: of the model that will ask; None to look at the index without asking a model.

        Raises:
            BundleError: there is no index, this medsd cannot read it, one of its files was changed, or another model
                made it.
            DependencyError: a Qdrant collection without the extra `qdrant`.
        """
        index = cls(_store(path).open(path))
        if model_sha256 is not None:
            index.check_model(model_sha256)
        return index

    @property
    def description(self) -> IndexDescription:
        return self.store.description

    @property
    def findings(self) -> FindingSet:
        """The vocabulary of the cases' labels."""
        return self.description.vocabulary

    @property
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """The values that `CaseFilter` may ask for: of view, sex, age_band and source."""
        return self.store.vocabulary()

    def __len__(self) -> int:
        return len(self.store)

    count = __len__

    def check_model(self, model_sha256: str, model: str = "") -> None:
        """Refuse a model that did not make this index.

        Raises:
            BundleError: it is another one; the message names both.
        """
        made_by = self.description
        if model_sha256 != made_by.model_sha256:
            raise BundleError(
                f"the case index was made by model {_named(made_by.model, made_by.model_sha256)}, not by "
                f"{_named(model, model_sha256)}; their embeddings cannot be compared: rebuild it with `medsd index`"
            )

    def similar(
        self,
        prediction: Prediction,
        k: int = 8,
        *,
        filters: CaseFilter | None = None,
        exclude_patient: str | None = OWN_PATIENT,
        exact: bool = False,
    ) -> list[SimilarCase]:
        """The k nearest cases and how each relates to what was predicted.

        Args:
            prediction: of the model that made this index. The study itself is never among the answers.
            k: how many cases.
            filters: which cases may be found.
            exclude_patient: a patient's key whose cases are left out; by default the prediction's own, None for nobody.
            exact: search exactly even where the index is approximate.

        Returns:
            At most k cases, most similar first, none twice; empty for a refused prediction.

        Raises:
            BundleError: another model made the index.
            DataError: a filter that asks for what the index does not have.
        """
        if prediction.refused or prediction.embedding is None:
            return []
        if prediction.model_sha256:
            self.check_model(prediction.model_sha256, prediction.model)
        if prediction.findings.names != self.findings.names:
            raise BundleError("the case index has other findings than the model; rebuild it with `medsd index`")
        hits = self.nearest(
            prediction.embedding,
            k,
            filters=filters,
            exclude_patient=(
                prediction.patient_keys or prediction.patient_key if exclude_patient == OWN_PATIENT else exclude_patient
            ),
            exclude_study=prediction.study_keys or prediction.study_key,
            exact=exact,
        )
        return explain(prediction, hits, self.description.scale)

    def vote(
        self,
        prediction: Prediction,
        *,
        filters: CaseFilter | None = None,
        exclude_patient: str | None = OWN_PATIENT,
    ) -> tuple[FindingVote, ...]:
        """What the nearest cases say of each finding, beside the model; flagged where they disagree.

        As many cases vote as the index's `VoteRule` was chosen with. Arguments and errors are those of `similar`.
        """
        rule = self.description.vote
        k = rule.k if rule else NEAREST
        similar = self.similar(prediction, k, filters=filters, exclude_patient=exclude_patient)
        return ballot(prediction, similar, rule)

    def find(self, query: FindingQuery, k: int = 8, *, filters: CaseFilter | None = None) -> list[SimilarCase]:
        """The cases whose findings fit a query best; no film and no model is needed.

        Args:
            query: the findings that are wanted, and those that a case must be known not to have.
            k: how many cases.
            filters: which cases may be found.

        Returns:
            at most k cases that share a wanted finding, none twice. First those of largest K_s·K_d of the wanted set
            (equal sets, then those that add or lack little), among equals the most typical: `similarity` is the
            cosine to the mean of the best ones. The relation is that of the case to the wanted set. Where nothing is
            wanted, cases with the fewest findings come first.

        Raises:
            DataError: an empty query, or one that asks for what the index does not have.
        """
        if not query:
            raise DataError("findings query: name at least one finding to be present or absent")
        wanted = query.labels(self.findings)
        filters = query.filters(filters)
        if filters:
            filters.check(self.findings, self._vocabulary_for(filters))
        return explain_query(wanted, self.store.matching(wanted, k, filters=filters or None), self.findings)

    def nearest(
        self,
        embedding: FloatArray,
        k: int = 8,
        *,
        filters: CaseFilter | None = None,
        exclude_patient: str | Sequence[str] | None = None,
        exclude_study: str | Sequence[str] | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k nearest cases to an embedding (D,) of any length but zero, duplicates collapsed.

        Two cases are duplicates when they share a study key or their embeddings are equal up to rounding; the nearest
        stays. Raises DataError as `similar` does.
        """
        query = self._unit(embedding)
        if filters:
            filters.check(self.findings, self._vocabulary_for(filters))
        return self.store.search(
            query,
            k,
            filters=filters or None,
            exclude_patients=_keys(exclude_patient),
            exclude_studies=_keys(exclude_study),
            exact=exact,
        )

    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        """Every case, pictures and notes included, with its embedding (D,)."""
        return self.store.records()

    def embeddings(self) -> FloatArray:
        """All embeddings, float32 (N, D) of unit length; do not write to it."""
        return self.store.embeddings()

    def table(self) -> pd.DataFrame:
        """One row a case, in the order of `embeddings`.

        Columns: study_key, patient_key, view, sex, age_band, source, split, findings (names joined by ``|``), then a
        float32 column a finding (1, 0, NaN).
        """
        return self.store.table()

    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        """Append cases with their embeddings (N, D) of unit length, as one new version.

        Cases of patients who were removed are left out (`readmit_patient`).

        Returns:
            how many cases were added.

        Raises:
            DataError: embeddings or labels of the wrong shape, or not of unit length.
        """
        return self.store.add(cases, embeddings)

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases, and their bytes from every file of the index, older versions included.

        The index keeps a keyed hash of the patient (`medsd.cases.removals`), also of one who has no case yet, and takes
        no case of this patient any more, by `add` or by `create_index` with `replace`.

        Returns:
            How many cases went.
        """
        return self.store.remove_patient(patient_key)

    def readmit_patient(self, patient_key: str) -> bool:
        """Let a patient who was removed be added again.

        Returns:
            whether this patient was removed before.
        """
        return self.store.readmit_patient(patient_key)

    def compact(self, *, approximate_above: int | None = None) -> float | None:
        """Merge small files, drop older versions, bring an approximate index up to date.

        Args:
            approximate_above: search approximately if there are more cases than this, exactly if not; None leaves it
                as the index was made.

        Returns:
            the measured recall of the approximate index, None where the search is exact.
        """
        return self.store.compact(approximate_above=approximate_above)

    def _vocabulary_for(self, filters: CaseFilter) -> dict[str, tuple[str, ...]]:
        """The vocabulary where a filter asks for a value; a server would be asked in vain otherwise."""
        by_value = any(getattr(filters, column) for column in FILTER_COLUMNS)
        return self.vocabulary if by_value else dict.fromkeys(FILTER_COLUMNS, ())

    def _unit(self, embedding: FloatArray) -> FloatArray:
        query = np.asarray(embedding, dtype=np.float32)
        size = self.description.embedding_size
        if query.shape != (size,) or not np.isfinite(query).all() or not query.any():
            raise DataError(f"an embedding to search for has {size} finite numbers, not all zero; got {query.shape}")
        return query / np.linalg.norm(query)


def create_index(
    path: str | Path,
    cases: Iterable[Case],
    embeddings: FloatArray,
    *,
    model_sha256: str,
    findings: FindingSet,
    model: str = "",
    public: bool = False,
    replace: bool = False,
    scale: SimilarityScale | None = None,
    vote: VoteRule | None = None,
    approximate_above: int = APPROXIMATE_ABOVE,
) -> CaseIndex:
    """Write a new index; a reader sees all of it or nothing.

    Args:
        path: the folder to make, a URI that LanceDB writes, or a Qdrant collection (see `CaseIndex.open`).
        cases: N cases; their labels are in the order of `findings`. Read once, a block at a time.
        embeddings: float32 (N, D) of unit length.
        model_sha256: of the model.onnx that made the embeddings.
        findings: the vocabulary of the labels.
        model: name and version of the bundle, for messages.
        public: the keys are made with the bundle's name.
        replace: put the new cases in the place of an index that is there; readers follow. Patients who were removed
            from it stay out.
        scale: of the similarities (`medsd.cases.scale.fit_scale`); made here where `cases` is a sequence.
        vote: when the nearest cases contradict the model.
        approximate_above: search approximately from this many cases on; the measured recall is logged.

    Raises:
        BundleError: something is there already and `replace` is not set, or what is there is no index.
        DataError: embeddings or labels of the wrong shape, or not of unit length.
    """
    from medsd.cases.rows import describe
    from medsd.cases.scale import scale_of

    description = describe(
        model_sha256,
        findings,
        int(np.shape(embeddings)[-1]),
        model=model,
        public=public,
        scale=scale or (scale_of(cases, embeddings) if isinstance(cases, Sequence) else None),
        vote=vote,
        approximate_above=approximate_above,
    )
    return CaseIndex(_store(path).create(path, cases, embeddings, description, replace=replace))


def _store(path: str | Path) -> Any:
    """The class of the store that `path` names."""
    if isinstance(path, str) and path.startswith("qdrant+"):
        from medsd.cases.qdrant import QdrantStore

        return QdrantStore
    from medsd.cases.lance import LanceStore

    return LanceStore


def _keys(given: str | Sequence[str] | None) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given or ()


def _named(model: str, sha256: str) -> str:
    return f"{model} ({sha256[:12]})" if model else sha256[:12]

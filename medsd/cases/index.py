"""The index of earlier cases: `CaseIndex.open(path).similar(prediction)` gives the nearest ones and how each relates.

`medsd.cases.lance` keeps the cases in a folder or an object store, `medsd.cases.qdrant` on a Qdrant server.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np

from medsd.cases.case import FILTER_COLUMNS, Case, CaseFilter, Excluded, FloatArray, Hit, SimilarCase
from medsd.cases.described import IndexDescription, describe
from medsd.cases.explain import explain, explain_query
from medsd.cases.query import FindingQuery
from medsd.cases.vote import NEAREST, FindingVote, ballot
from medsd.errors import BundleError, DataError, MedsdError
from medsd.findings import FindingSet
from medsd.inference.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd

    from medsd.cases.exact import Snapshot

OWN_PATIENT = "the prediction's own patient"
T = TypeVar("T")


class NewCases(NamedTuple):
    """What a new index is written from; see `create_index`."""

    cases: Iterable[Case]
    embeddings: FloatArray  # (N, D)
    description: IndexDescription


class CaseIndex(ABC):
    """Earlier cases in the learned space of one model. Several threads may search one index at a time."""

    _pauses: tuple[float, ...] = ()  # seconds before each further try of a question that met a writer
    _stale: tuple[type[Exception], ...] = (Exception,)  # what such a question raises

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self._description: IndexDescription | None = None

    @staticmethod
    def open(path: str | Path, *, model_sha256: str | None = None) -> "CaseIndex":
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
        index = _kind(path)(path)
        if model_sha256 is not None:
            index.check_model(model_sha256)
        return index

    @classmethod
    @abstractmethod
    def create(cls, path: str | Path, new: NewCases, *, replace: bool) -> Self: ...

    @property
    def description(self) -> IndexDescription:
        assert self._description is not None  # since the index was opened
        return self._description

    @property
    def approximate(self) -> bool:
        """Whether a search may miss some of the nearest cases."""
        return False

    @property
    def findings(self) -> FindingSet:
        """The vocabulary of the cases' labels."""
        return self.description.vocabulary

    def check_model(self, model_sha256: str, model: str = "") -> None:
        """Refuse a model that did not make this index; raises BundleError, which names both."""
        about = self.description
        if model_sha256 != about.model_sha256:
            made_by, asks = (
                f"{name} ({sha256[:12]})" if name else sha256[:12]
                for name, sha256 in ((about.model, about.model_sha256), (model, model_sha256))
            )
            raise BundleError(
                f"the case index was made by model {made_by}, not by {asks}; their embeddings cannot be compared: "
                "rebuild it with `medsd index`"
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
        """The k nearest cases, none twice, and how each relates to what was predicted; none for a refused prediction.

        Args:
            prediction: of the model that made this index. The study itself is never among the answers.
            exclude_patient: a patient's key whose cases are left out; by default the prediction's own, None for nobody.
            exact: search exactly even if the index is approximate.

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
        own = prediction.patient_keys or prediction.patient_key
        hits = self.nearest(
            prediction.embedding,
            k,
            filters=filters,
            exclude_patient=own if exclude_patient == OWN_PATIENT else exclude_patient,
            exclude_study=prediction.study_keys or prediction.study_key,
            exact=exact,
        )
        return explain(prediction, hits, self.description.scale)

    def vote(self, prediction: Prediction, *, filters: CaseFilter | None = None) -> tuple[FindingVote, ...]:
        """What the nearest cases say of each finding, beside the model; disagreement is flagged.

        As many cases vote as the index's `VoteRule` was chosen with. Arguments and errors are those of `similar`.
        """
        rule = self.description.vote
        k = rule.k if rule else NEAREST
        return ballot(prediction, self.similar(prediction, k, filters=filters), rule)

    def find(self, query: FindingQuery, k: int = 8, *, filters: CaseFilter | None = None) -> list[SimilarCase]:
        """The k cases whose findings fit a query best, none twice; no image and no model is needed.

        They share a wanted finding, and are ordered by K_s·K_d of the wanted set, equal ones by their cosine to the
        mean of the best ones, which is their `similarity`. The relation is that of the case to the wanted set. If
        nothing is wanted, cases with the fewest findings come first. Raises DataError for an empty query, or one that
        asks for what the index does not have.
        """
        wanted, chosen = self._asked(query, filters)
        return explain_query(wanted, self._retrying(lambda: self._matching(wanted, k, chosen)), self.findings)

    def matches(self, query: FindingQuery, *, filters: CaseFilter | None = None) -> "pd.DataFrame":
        """Every study that `find` looks among, best first: the rows of `table`, and `fit`, their K_s·K_d.

        If nothing is wanted, `fit` is K_d. A study of several cases is there once. Errors are those of `find`.
        """
        from medsd.cases.rows import case_table

        wanted, chosen = self._asked(query, filters)
        snapshot = self._retrying(self._facts)
        positions, fit = snapshot.fits(wanted, self.findings, chosen)
        table = case_table(snapshot.take(positions), self.findings).assign(fit=fit)
        repeated = table["study_key"].duplicated() & (table["study_key"] != "")
        return table[~repeated].reset_index(drop=True)

    def _asked(self, query: FindingQuery, filters: CaseFilter | None) -> tuple[FloatArray, CaseFilter | None]:
        """The wanted set (F,) of a query, and what filters; raises DataError."""
        if not query:
            raise DataError("findings query: name at least one finding to be present or absent")
        return query.labels(self.findings), self._checked(query.filters(filters))

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
        """The k nearest cases to an embedding (D,) of any length but zero.

        Of cases that share a study key, or whose embeddings are equal up to rounding, the nearest stays. Raises
        DataError as `similar` does.
        """
        query = np.asarray(embedding, dtype=np.float32)
        size = self.description.embedding_size
        if query.shape != (size,) or not np.isfinite(query).all() or not query.any():
            raise DataError(f"an embedding to search for has {size} finite numbers, not all zero; got {query.shape}")
        unit, chosen = query / np.linalg.norm(query), self._checked(filters)
        given = {"patient_key": _keys(exclude_patient), "study_key": _keys(exclude_study)}
        excluded = {column: keys for column, keys in given.items() if keys}
        return self._retrying(lambda: self._search(unit, k, chosen, excluded, exact=exact))

    @property
    @abstractmethod
    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """The values that `CaseFilter` may ask for: of view, sex, age_band and source, sorted."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def records(self) -> Iterator[tuple[Case, FloatArray]]:
        """Every case, pictures and notes included, with its embedding (D,), in the order of `embeddings`."""

    @abstractmethod
    def embeddings(self) -> FloatArray:
        """All embeddings, float32 (N, D) of unit length; do not write to it."""

    def table(self) -> "pd.DataFrame":
        """One row a case, in the order of `embeddings`.

        Columns: study_key, patient_key, view, sex, age_band, source, split, findings (names joined by ``|``), then a
        float32 column a finding (1, 0, NaN).
        """
        from medsd.cases.rows import case_table

        return case_table(self._retrying(self._facts), self.findings)

    @abstractmethod
    def add(self, cases: Sequence[Case], embeddings: FloatArray) -> int:
        """Append cases with their embeddings (N, D) of unit length, as one new version; returns how many were added.

        Cases of patients who were removed are left out (`readmit_patient`).

        Raises:
            DataError: embeddings or labels of the wrong shape, or not of unit length.
        """

    def remove_patient(self, patient_key: str) -> int:
        """Remove a patient's cases, and their bytes from every file of the index; returns how many cases went.

        The index keeps a keyed hash of the patient (`medsd.cases.removals`), also of one who has no case yet, and takes
        no case of this patient any more, by `add` or by `create_index` with `replace`.
        """
        if not patient_key:
            raise DataError("remove: give the patient's key; an empty one would mean every case without a patient")
        return self._remove(patient_key)

    @abstractmethod
    def readmit_patient(self, patient_key: str) -> bool:
        """Let a patient who was removed be added again; returns whether this patient was removed before."""

    @abstractmethod
    def compact(self, *, approximate_above: int | None = None) -> float | None:
        """Merge small files, drop older versions; returns the recall of an approximate index, None if it is exact.

        The search is approximate if there are more cases than `approximate_above`; None leaves it as the index was
        made.
        """

    @abstractmethod
    def _search(
        self, embedding: FloatArray, k: int, filters: CaseFilter | None, excluded: Excluded, *, exact: bool
    ) -> list[Hit]:
        """The k cases of largest cosine to `embedding` (D,) of unit length, nearest first, none twice."""

    @abstractmethod
    def _matching(self, wanted: FloatArray, k: int, filters: CaseFilter | None) -> list[Hit]:
        """The k cases whose findings fit the set `wanted` (F,) best; see `medsd.cases.exact.Snapshot.matching`."""

    @abstractmethod
    def _facts(self) -> "Snapshot":
        """Keys, attributes and labels of all cases, in the order of `embeddings`."""

    @abstractmethod
    def _remove(self, patient_key: str) -> int: ...

    @abstractmethod
    def _why(self, error: Exception) -> str:
        """Why no question can be answered, for people."""

    def _forget(self) -> None:  # noqa: B027  # most kinds hold no version
        """Let go of the version in hand, before a question is asked again."""

    def _follow(self, now: IndexDescription) -> None:
        """Take the description of the version that is read now; refuse the index of another model."""
        ours = self._description or now
        if (now.model_sha256, now.findings) != (ours.model_sha256, ours.findings):
            raise BundleError(f"{self.uri}: the case index was replaced by one of another model; open it again")
        self._description = ours

    def _retrying(self, ask: Callable[[], T]) -> T:
        """Ask again if a writer has just replaced the version in hand."""
        for pause in (*self._pauses, None):
            try:
                return ask()
            except MedsdError:
                raise
            except self._stale as error:
                if pause is None:
                    raise BundleError(f"{self.uri}: {self._why(error)}") from None
                time.sleep(pause)
                self._forget()
        raise AssertionError("unreachable")

    def _checked(self, filters: CaseFilter | None) -> CaseFilter | None:
        """The filter, compared with what the index has; the vocabulary is only read for a filter by value."""
        if not filters:
            return None
        by_value = any(getattr(filters, column) for column in FILTER_COLUMNS)
        filters.check(self.findings, self.vocabulary if by_value else dict.fromkeys(FILTER_COLUMNS, ()))
        return filters


def create_index(
    path: str | Path,
    cases: Iterable[Case],
    embeddings: FloatArray,
    *,
    model_sha256: str,
    findings: FindingSet,
    replace: bool = False,
    **about: Any,
) -> CaseIndex:
    """Write a new index; a reader sees all of it or nothing.

    Args:
        path: the folder to make, a URI that LanceDB writes, or a Qdrant collection (see `CaseIndex.open`).
        cases: N cases; their labels are in the order of `findings`. Read once, a block at a time.
        embeddings: float32 (N, D) of unit length, by the model.onnx of `model_sha256`.
        replace: put the new cases in the place of an index that is there; readers follow. Patients who were removed
            from it stay out.
        about: what else is known: model, public, scale, vote, approximate_above, as in `IndexDescription`.

    Raises:
        BundleError: something is there already and `replace` is not set, or what is there is no index.
        DataError: embeddings or labels of the wrong shape, or not of unit length.
    """
    description = describe(model_sha256, findings, int(np.shape(embeddings)[-1]), **about)
    return _kind(path).create(path, NewCases(cases, embeddings, description), replace=replace)


def _kind(path: str | Path) -> type[CaseIndex]:
    """The class that keeps the cases at `path`; its module builds on this one, so it is imported only here."""
    on_a_server = isinstance(path, str) and path.startswith("qdrant+")
    module, name = ("qdrant", "QdrantIndex") if on_a_server else ("lance", "LanceIndex")
    kind: type[CaseIndex] = getattr(import_module(f"medsd.cases.{module}"), name)
    return kind


def _keys(given: str | Sequence[str] | None) -> list[str]:
    return [key for key in ([given] if isinstance(given, str) else given or ()) if key]

"""`Engine`: an image or tensors in, an answer out; the bundle, its session and the processes that decode behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from medsd.bundle.layout import Bundle
from medsd.cases.index import CaseIndex
from medsd.cases.manage import hasher_of
from medsd.dicom.gate import GatePolicy
from medsd.errors import DependencyError, MedsdError
from medsd.inference.coverage import conformal_limits, recalled
from medsd.inference.predict import Predictor, Study
from medsd.inference.prediction import Prediction
from medsd.inference.providers import CPU
from medsd.inference.session import processors
from medsd.preprocessing.decode import Decoder, taking_turns
from medsd.preprocessing.memory_file import MemoryFile
from medsd.rest.batcher import Batcher
from medsd.rest.bodies import FormFields
from medsd.rest.refused import RefusedError
from medsd.rest.status import RestStatus
from medsd.results.audit import AuditLog
from medsd.results.record import ReadingRecord, reading_record
from medsd.scoring.batch import InputBatch, read_padded

if TYPE_CHECKING:
    from medsd.inference.providers import PrecisionChoice, ProviderChoice

log = logging.getLogger(__name__)

_WAYS = 2  # runs of the model at a time on a CPU: while one ends, the other keeps the processors busy


class Engine:
    """A bundle that answers many requests at once; a context manager that starts and ends its processes.

    Args:
        folder: of the bundle.
        workers: processes that decode, each within the limits of the policy.
        batch_size: studies in one run of the model. Each run is filled up to it, as in `medsd.scoring.batch`: what an
            image gets does not depend on what else is asked for, and is what `medsd score` gives it.
        audit: an audit log that gets a line for each answer, before it leaves; none by default.
        provider, precision, policy: as for `Predictor`.

    Raises:
        BundleError: no bundle, or an altered one; or its cases are another model's.
        DataError: the audit log cannot be written.
        DependencyError: no process starts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        batch_size: int = 8,
        audit: Path | None = None,
        provider: ProviderChoice = "auto",
        precision: PrecisionChoice = "auto",
        policy: GatePolicy | None = None,
    ) -> None:
        self.bundle = bundle = Bundle.open(folder)
        self.status = RestStatus()
        policy, hasher = policy or GatePolicy(), hasher_of(bundle)
        self._audit = AuditLog(audit, hasher) if audit else None
        if self._audit:
            self._audit.prepare()
        has_cases = bundle.cases_path.is_dir()
        self._cases = CaseIndex.open(bundle.cases_path, model_sha256=bundle.model_sha256) if has_cases else None
        ways = min(_WAYS, processors())
        self._predictor = Predictor(
            bundle, provider=provider, precision=precision, policy=policy, threads=max(1, processors() // ways)
        )
        self.session = self._predictor.session
        decoder = Decoder(bundle.description.pixels, policy, hasher)
        self._helpers = [decoder.helper() for _ in range(workers)] if bundle.description.image else []
        self._decode = taking_turns(self._helpers)
        self._decoding = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        ways = ways if self.session.provider == CPU else 1
        self._running = ThreadPoolExecutor(ways, thread_name_prefix="run")
        self._size = batch_size
        self._batcher = Batcher(self._read, size=batch_size, ways=ways, threads=self._running)

    def __enter__(self) -> Self:
        if not all(self._decoding.map(lambda helper: helper.start(), self._helpers)):
            self.close()
            raise DependencyError("no process starts to decode images in; free memory, or give fewer --workers")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes at once."""
        for helper in self._helpers:
            helper.close()
        for threads in (self._decoding, self._running):
            threads.shutdown(wait=False, cancel_futures=True)

    async def read(self, arriving: Awaitable[tuple[MemoryFile | None, FormFields]]) -> ReadingRecord:
        """Read one study: the content of a file, or None for the note alone, and what is asked of it.

        Raises:
            RefusedError: this bundle cannot give what is asked for, or the audit log cannot be written; and what
                `arriving` raises.
        """
        with self._batcher.expecting():
            content, asked = await arriving
            await self._check(asked)
        prediction = await self._batcher(self._decoded(content, asked.note))
        return await asyncio.to_thread(self._record, content, asked, prediction)

    async def infer(self, feeds: Mapping[str, npt.NDArray[Any]], body: bytes) -> dict[str, npt.NDArray[np.float32]]:
        """All that the graph says of its own inputs, in one run as they came; no gate looks at them.

        `body` is what the audit log has the hash of. Raises RefusedError: the graph cannot compute these inputs, or
        the audit log cannot be written.
        """
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._running, self.session.run, feeds)
        except Exception as error:  # ONNX Runtime's own classes
            log.warning("the graph could not compute the inputs of a request: %s", type(error).__name__)
            raise RefusedError(400, "The graph cannot compute these inputs.") from None
        about = Prediction(
            self.bundle.findings,
            "scored",
            model=self.bundle.label,
            model_sha256=self.bundle.model_sha256,
            provider=self.session.provider,
        )
        await asyncio.to_thread(self._log, body, about, "tensors", datetime.now(UTC))
        return {name: getattr(outputs, name) for name in self.session.outputs}

    async def _check(self, asked: FormFields) -> None:
        if asked.k and self._cases is None:
            raise RefusedError(422, f"k: {self.bundle.label} has no cases; leave it out.")
        if asked.coverage is not None:
            try:
                await asyncio.to_thread(conformal_limits, self.bundle, asked.coverage)
            except MedsdError as error:
                raise RefusedError(422, f"coverage: {error}.") from None

    async def _decoded(self, content: MemoryFile | None, note: str) -> Study:
        if content is None or not self._helpers:
            return Study(None, note)
        image = await asyncio.get_running_loop().run_in_executor(self._decoding, self._decode, content)
        return Study(image, note)

    def _read(self, studies: Sequence[Study]) -> list[Prediction]:
        batch = InputBatch()
        for study in studies:
            batch.add("", study)
        predictions = read_padded(self._predictor, batch, self._size)
        self.status.read(predictions)
        return predictions

    def _record(self, content: MemoryFile | None, asked: FormFields, prediction: Prediction) -> ReadingRecord:
        prediction, when = recalled(prediction, self.bundle, asked.coverage), datetime.now(UTC)
        index = self._cases if asked.k and not prediction.refused else None
        cases, votes = (index.similar(prediction, asked.k), index.vote(prediction)) if index is not None else ((), ())
        record = reading_record(prediction, self.bundle, cases, votes, when=when.isoformat(timespec="seconds"))
        self._log(content or asked.note.encode(), prediction, "json", when)
        return record

    def _log(self, content: MemoryFile | bytes, prediction: Prediction, form: str, when: datetime) -> None:
        if self._audit is None:
            return
        try:
            self._audit.append(content if isinstance(content, bytes) else content.content(), prediction, [form], when)
        except OSError as error:
            log.error("the audit log cannot be written: %s", error.strerror)
            raise RefusedError(503, "The audit log cannot be written, so that no result is given.") from None

"""Studies of several requests in one run of the model: those that wait, as soon as a run is worth it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import NamedTuple

from medsd.inference.predict import Study
from medsd.inference.prediction import Prediction

LONGEST_S = 0.5  # that a study waits for others, or for as long as it was decoded; and that any wait for one to arrive


class _Waiting(NamedTuple):
    study: Study
    until: float  # by the loop's clock; from then on it waits for no other
    answer: asyncio.Future[Prediction]


class Batcher:
    """Gathers studies for `read`, which an executor runs; belongs to one event loop.

    A run begins when `size` studies wait; or fewer, when no other is on its way, or one of them has waited for
    `LONGEST_S`, and for as long as it was being decoded. So a single request never waits, and many fill their runs.

    Args:
        read: reads up to `size` studies, in their order.
        size: studies in one run.
        ways: runs at a time.
        threads: has as many threads, at least.
    """

    def __init__(
        self, read: Callable[[Sequence[Study]], Sequence[Prediction]], *, size: int, ways: int, threads: Executor
    ) -> None:
        self._read, self._size, self._ways, self._threads = read, size, ways, threads
        self._waiting: deque[_Waiting] = deque()
        self._decoding = self._running = 0
        self._arriving: set[object] = set()
        self._runs: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """A study arrives: others wait for it, though not for one that takes longer than `LONGEST_S`."""
        loop, study = asyncio.get_running_loop(), object()
        self._arriving.add(study)
        loop.call_later(LONGEST_S, self._expect_no_more, study)
        try:
            yield
        finally:
            loop.call_soon(self._expect_no_more, study)  # by then it is being decoded

    def _expect_no_more(self, study: object) -> None:
        self._arriving.discard(study)
        self._begin_runs()

    async def __call__(self, decoded: Awaitable[Study]) -> Prediction:
        """Read one study as soon as it is decoded; what `decoded` or the run raises is raised here."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._decoding += 1
        try:
            study = await decoded
            patience = max(LONGEST_S, loop.time() - begun)
            waiting = _Waiting(study, loop.time() + patience, loop.create_future())
            self._waiting.append(waiting)
            loop.call_later(patience, self._begin_runs)
        finally:
            self._decoding -= 1
            self._begin_runs()
        return await waiting.answer

    def _begin_runs(self) -> None:
        while self._waiting and self._running < self._ways and self._worth_it():
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            self._running += 1
            run = asyncio.get_running_loop().create_task(self._run(batch))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)

    def _worth_it(self) -> bool:
        full, alone = len(self._waiting) >= self._size, not self._decoding and not self._arriving
        return full or alone or asyncio.get_running_loop().time() >= min(each.until for each in self._waiting)

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        studies = [each.study for each in batch]
        try:
            predictions = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, studies)
        except Exception as error:
            for each in batch:
                if not each.answer.done():  # its request may have ended meanwhile
                    each.answer.set_exception(error)
        else:
            for each, prediction in zip(batch, predictions, strict=True):
                if not each.answer.done():
                    each.answer.set_result(prediction)
        finally:
            self._running -= 1
            self._begin_runs()

"""Micro-batching: what clients ask at the same time is answered together, in a thread beside the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Generic, TypeVar

from vae_core.errors import LatentbitsError

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class Busy(LatentbitsError):
    """More waits than the service can answer soon; asking again later is the remedy."""


class Batches(Generic[Asked, Answered]):
    """Questions wait while a batch is answered, and then make up the next ones; so none waits for company.

    `work` answers a list, in its order, and runs in `thread`. At most `waiting` questions wait.
    """

    def __init__(
        self, work: Callable[[list[Asked]], list[Answered]], thread: Executor, *, at_most: int, waiting: int
    ) -> None:
        self.work = work
        self.thread = thread
        self.at_most = at_most
        self.most_waiting = waiting
        self.waiting = 0
        self._queue: asyncio.Queue[_Request[Asked, Answered]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, questions: Sequence[Asked]) -> list[Answered]:
        """The answers. Raises Busy where too much waits, and what `work` raised."""
        if self.waiting and self.waiting + len(questions) > self.most_waiting:
            raise Busy(f"{self.waiting} queries wait already; ask again in a second")
        request = _Request[Asked, Answered](list(questions))
        self.waiting += len(questions)
        self._queue.put_nowait(request)
        return await request.answers

    def start(self) -> None:
        """Begin to answer, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._answer())

    async def stop(self) -> None:
        """End, once what waits has been answered."""
        if self._task is not None:
            await self._queue.join()
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _answer(self) -> None:
        size = 0
        while True:
            taken = [await self._queue.get()]
            # Of what waits and what was answered just now half, so that clients are read and written to meanwhile.
            size, most = len(taken[0].questions), min(self.at_most, -(-(self.waiting + size) // 2))
            while not self._queue.empty() and size < most:
                taken.append(self._queue.get_nowait())
                size += len(taken[-1].questions)
            self.waiting -= size
            await self._answer_together([one for one in taken if not one.answers.done()])
            for _ in taken:
                self._queue.task_done()

    async def _answer_together(self, requests: "list[_Request[Asked, Answered]]") -> None:
        """A request that was given up is skipped; what `work` raises, its clients get, and the next batch goes on."""
        questions = [question for request in requests for question in request.questions]
        if not questions:
            return
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.work, questions)
        except Exception as error:  # whatever it is, the clients are to hear of it, not the loop
            for request in requests:
                if not request.answers.done():
                    request.answers.set_exception(error)
            return
        start = 0
        for request in requests:
            end = start + len(request.questions)
            if not request.answers.done():
                request.answers.set_result(answers[start:end])
            start = end


class _Request(Generic[Asked, Answered]):
    def __init__(self, questions: list[Asked]) -> None:
        self.questions = questions
        self.answers: asyncio.Future[list[Answered]] = asyncio.get_running_loop().create_future()

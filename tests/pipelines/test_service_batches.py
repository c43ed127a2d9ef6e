"""Micro-batching, told by what the work function saw."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.serving.batches import Batches, Busy


class Work:
    """Doubles numbers, remembers each batch, and waits for `gate` before it answers."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.seen.append(numbers)
        self.gate.wait(10)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [2 * number for number in numbers]


def run(scene: Callable[[Batches[int, int], Work], Awaitable[None]], at_most: int = 8, waiting: int = 100) -> Work:
    work = Work()

    async def play() -> None:
        with ThreadPoolExecutor(1) as thread:
            batches = Batches[int, int](work, thread, at_most=at_most, waiting=waiting)
            batches.start()
            await scene(batches, work)
            await batches.stop()

    asyncio.run(play())
    return work


async def asked(batches: Batches[int, int], numbers: list[int]) -> "asyncio.Task[list[int]]":
    task = asyncio.create_task(batches.ask(numbers))
    await asyncio.sleep(0.02)
    return task


def test_what_is_asked_while_a_batch_runs_makes_up_the_next_ones_and_each_gets_its_own_answers() -> None:
    async def scene(batches: Batches[int, int], work: Work) -> None:
        work.gate.clear()
        tasks = [await asked(batches, [number, number + 100]) for number in range(6)]
        work.gate.set()
        assert await asyncio.gather(*tasks) == [[2 * number, 2 * number + 200] for number in range(6)]

    assert [len(batch) for batch in run(scene).seen] == [2, 6, 4]


def test_clients_that_ask_on_and_on_are_answered_in_two_halves_by_turns() -> None:
    """So one half is read and written to while the other is answered."""

    async def scene(batches: Batches[int, int], _: Work) -> None:
        async def client() -> None:
            for _ in range(10):
                await batches.ask([1])

        await asyncio.gather(*(client() for _ in range(8)))

    sizes = [len(batch) for batch in run(scene).seen]
    assert sum(sizes) == 80
    assert set(sizes[2:-3]) == {4}


def test_a_question_that_is_alone_waits_for_no_other() -> None:
    async def scene(batches: Batches[int, int], _: Work) -> None:
        for number in range(12):
            assert await batches.ask([number]) == [2 * number]

    assert len(run(scene).seen) == 12


def test_what_the_work_raises_reaches_its_clients_and_the_next_batch_is_answered() -> None:
    async def scene(batches: Batches[int, int], _: Work) -> None:
        with pytest.raises(ValueError, match="thirteen"):
            await batches.ask([13])
        assert await batches.ask([14]) == [28]

    run(scene)


def test_a_question_that_was_given_up_is_not_worked_on() -> None:
    async def scene(batches: Batches[int, int], work: Work) -> None:
        work.gate.clear()
        first = await asked(batches, [1])
        second = await asked(batches, [2])
        second.cancel()
        await asyncio.sleep(0)
        work.gate.set()
        assert await first == [2]
        assert await batches.ask([3]) == [6]

    assert run(scene).seen == [[1], [3]]


def test_more_than_may_wait_is_refused_and_what_waits_is_answered_in_the_end() -> None:
    async def scene(batches: Batches[int, int], work: Work) -> None:
        work.gate.clear()
        tasks = [await asked(batches, [number]) for number in range(4)]
        with pytest.raises(Busy, match="3 queries wait already"):
            await batches.ask([9])
        work.gate.set()
        assert await asyncio.gather(*tasks) == [[0], [2], [4], [6]]

    run(scene, waiting=3)


def test_stopping_answers_what_waits_first() -> None:
    async def scene(batches: Batches[int, int], work: Work) -> None:
        work.gate.clear()
        tasks = [await asked(batches, [number]) for number in range(5)]
        asyncio.get_running_loop().call_later(0.1, work.gate.set)
        await batches.stop()
        assert [task.result() for task in tasks] == [[0], [2], [4], [6], [8]]

    run(scene, at_most=2)

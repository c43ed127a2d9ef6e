"""The door to Ray, through a real cluster."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.scatter import cores, packed, scatter, unpacked
from vae_core.errors import Damaged, LatentbitsError, Misuse

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_every_item_gives_its_result_once_whatever_the_number_of_workers() -> None:
    def squaring() -> Callable[[int], int]:
        return lambda number: number * number

    expected = [number * number for number in range(20)]
    assert sorted(scatter(squaring, range(20))) == expected
    assert sorted(scatter(squaring, range(20), workers=1)) == expected


def test_no_items_give_no_results() -> None:
    assert list(scatter(lambda: str, [])) == []


def test_a_worker_is_made_once_in_each_process() -> None:
    def make() -> Callable[[int], tuple[int, int]]:
        calls: list[int] = []

        def count(item: int) -> tuple[int, int]:
            calls.append(item)
            return os.getpid(), len(calls)

        return count

    results = list(scatter(make, range(12), workers=2))
    last = {process: max(count for other, count in results if other == process) for process, _ in results}
    assert len(last) <= 2
    assert sum(last.values()) == 12


def test_items_of_a_process_that_was_killed_are_done_by_its_successor(tmp_path: Path) -> None:
    def make() -> Callable[[int], int]:
        def die_once(item: int) -> int:
            if item == 3 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            return item

        return die_once

    assert sorted(scatter(make, range(6))) == list(range(6))
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("kind", [Misuse, Damaged, LatentbitsError])
def test_an_error_that_the_user_can_put_right_comes_through_as_it_was_raised(kind: type[LatentbitsError]) -> None:
    def make() -> Callable[[str], None]:
        def refuse(item: str) -> None:
            raise kind(f"{item} has no field text; give another --text")

        return refuse

    with pytest.raises(LatentbitsError) as caught:
        list(scatter(make, ["news.csv"]))
    assert type(caught.value) is kind
    assert str(caught.value) == "news.csv has no field text; give another --text"


def test_an_error_while_the_worker_is_made_comes_through_as_it_was_raised() -> None:
    def make() -> Callable[[int], int]:
        raise Misuse("runs/model is not a folder; give the folder that pretrain wrote")

    with pytest.raises(Misuse, match=r"^runs/model is not a folder"):
        list(scatter(make, [1, 2]))


def test_any_other_error_names_the_item_and_what_was_raised() -> None:
    """Even one that cannot be unpickled, because its constructor wants more than its args hold."""

    class Peculiar(Exception):
        def __init__(self, what: str, where: str) -> None:
            super().__init__(f"{what} in {where}")

    def make() -> Callable[[str], None]:
        def fail(item: str) -> None:
            raise Peculiar("no words", item.upper())

        return fail

    with pytest.raises(LatentbitsError, match=r"'news\.csv': Peculiar: no words in NEWS\.CSV") as caught:
        list(scatter(make, ["news.csv"]))
    assert caught.value.exit_status == 1
    assert "in fail" in caught.value.__notes__[0]


@pytest.mark.slow
def test_an_item_that_kills_every_process_ends_in_an_error_that_says_so() -> None:
    def make() -> Callable[[int], None]:
        return lambda item: os._exit(item)

    with pytest.raises(LatentbitsError, match="a worker process died 4 times on the same item"):
        list(scatter(make, [1]))


@pytest.mark.slow
def test_an_item_that_kills_every_process_can_be_given_up_and_the_others_go_on() -> None:
    def make() -> Callable[[int], str]:
        return lambda item: os._exit(item) if item == 1 else f"{item} done"

    found = set(scatter(make, [0, 1, 2], given_up=lambda item, reason: f"{item}: {reason}"))
    assert {"0 done", "2 done"} < found
    (lost,) = found - {"0 done", "2 done"}
    assert lost.startswith("1: a worker process died 4 times on the same item")


def test_workers_that_run_stages_at_once_do_not_wait_for_each_others_cores(tmp_path: Path) -> None:
    """Each holds a core until the other holds one too, and needs another item done: with more than a share each, two
    pools on two cores would wait for ever."""

    def make() -> Callable[[str], list[str]]:
        def meet(item: tuple[str, int]) -> str:
            name, number = item
            (tmp_path / name).touch()
            end = time.monotonic() + 60
            while number == 0 and len(list(tmp_path.iterdir())) < 2:
                assert time.monotonic() < end, "the other pool had no core"
                time.sleep(0.02)
            return f"{name}{number}"

        return lambda name: sorted(scatter(lambda: meet, [(name, number) for number in range(3)]))

    assert sorted(scatter(make, ["a", "b"], workers=2, running_stages=True)) == [
        ["a0", "a1", "a2"],
        ["b0", "b1", "b2"],
    ]


def test_workers_that_run_stages_are_told_their_share_of_the_cores() -> None:
    whole = cores()
    assert list(scatter(lambda: lambda _: cores(), [1], running_stages=True)) == [whole]
    shares = scatter(lambda: lambda _: cores(), range(whole), workers=whole, running_stages=True)
    assert set(shares) == {1}
    with pytest.raises(Misuse, match=f"{whole + 1} workers that run stages need a core each, and there are {whole}"):
        list(scatter(lambda: str, range(whole + 1), workers=whole + 1, running_stages=True))


def test_a_path_that_a_machine_does_not_have_is_told_with_the_remedy(tmp_path: Path) -> None:
    shared, not_yet = tmp_path / "shared", tmp_path / "not yet"
    shared.mkdir()
    assert unpacked(packed([shared, not_yet])) == [shared, not_yet]
    content = packed([shared])
    shared.rmdir()
    with pytest.raises(Misuse, match=r"shared is not on the machine .*; give a folder that all machines .* share"):
        unpacked(content)


def test_more_workers_than_cores_are_no_reason_to_wait() -> None:
    assert sorted(scatter(lambda: lambda item: item, range(50), workers=40)) == list(range(50))

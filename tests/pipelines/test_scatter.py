"""The door to Ray, through a real cluster."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.scatter import scatter
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

"""Fixtures that more than one room needs."""

from collections.abc import Iterator

import pytest

from pipelines.scatter import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole test session; a start takes about five seconds."""
    with cluster():
        yield

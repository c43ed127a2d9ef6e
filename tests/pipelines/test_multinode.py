"""A cluster of several nodes without a common disk: whole runs, and nodes that are lost in the midst of a stage."""

from pathlib import Path

import pytest

from tests.nodes import in_its_own_network
from tests.pipelines.multinode_scenarios import SCENARIOS


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, tmp_path: Path) -> None:
    assert f"{scenario} after" in in_its_own_network("tests.pipelines.multinode_scenarios", scenario, tmp_path)

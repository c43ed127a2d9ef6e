"""A tracking server that is stopped in mid-training."""

from pathlib import Path

import pytest
from outage import outage


@pytest.mark.slow
def test_an_outage_in_mid_training_loses_no_metric_and_costs_under_a_hundredth_of_step_time(tmp_path: Path) -> None:
    found = outage(tmp_path, seconds=8)
    assert found.steps > 200
    assert found.lost == 0
    assert found.share < 0.01

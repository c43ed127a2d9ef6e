"""The Grafana dashboard: every query parses and asks for figures that exist, by labels that they have."""

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.serving.metrics import Metrics

DASHBOARD = json.loads((Path(__file__).parent.parent.parent / "infra/grafana/latentbits.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def asked(expression: str) -> set[str]:
    """The names of the figures that a query asks for."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
            if (child := getattr(node, name, None)) is not None and not isinstance(child, str):
                walk(child)
        for child in getattr(node, "args", None) or []:
            walk(child)

    walk(promql_parser.parse(expression))
    return found


@pytest.mark.parametrize(("title", "expression"), QUERIES)
def test_a_query_parses_and_asks_for_something(title: str, expression: str) -> None:
    assert asked(expression), title


def test_the_service_exports_what_is_asked_of_it() -> None:
    page = Metrics().page().decode()
    exported = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    for family in text_string_to_metric_families(page):  # without an event yet, a labelled figure has no sample
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        exported |= {family.name + end for end in ends}
    wanted = {name for _, query in QUERIES for name in asked(query) if name.startswith("latentbits_")}
    assert wanted
    assert wanted <= exported


def test_only_figures_of_ray_and_of_the_service_are_asked_for() -> None:
    """Those of Ray are compared with a running head in tests/jobs/test_submit.py."""
    assert {name.split("_")[0] for _, query in QUERIES for name in asked(query)} == {"ray", "latentbits"}


def test_panels_have_a_title_a_meaning_and_a_place_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"prometheus"}

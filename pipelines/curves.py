"""The curves of a training as one drawing."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.charts import STYLE, WIDTH, Axes, drawing

HEIGHT = 300.0
SHOWN = {"loss": "ours", "distortion": "theirs"}
POINTS = 500


def training_curves(metrics: Path) -> str:
    """The loss and the distortion in it at each logged step of `metrics.jsonl`, as SVG that stands alone."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    records = [record for record in records if "loss" in record]
    records = records[:: max(1, len(records) // POINTS)]
    if len(records) < 2:
        return _alone(drawing("no curve: nothing was logged", 40, ['<text x="8" y="24">nothing was logged</text>']))
    steps = [float(record["step"]) for record in records]
    lines = {name: [float(record[name]) for record in records if name in record] for name in SHOWN}
    values = [value for line in lines.values() for value in line]
    axes = Axes((steps[0], steps[-1]), (min(values), max(values)), HEIGHT, ("step", "nats a document"))
    shapes = axes.shapes()
    for name, line in lines.items():
        if len(line) == len(steps):
            shapes.append(_path(axes, steps, line, SHOWN[name]))
    for place, (name, colour) in enumerate(SHOWN.items()):
        shapes.append(f'<text x="{WIDTH - 110}" y="{26 + 18 * place}" style="fill: var(--{colour})">{name}</text>')
    return _alone(drawing(f"loss from {lines['loss'][0]:.4g} to {lines['loss'][-1]:.4g} nats", HEIGHT, shapes))


def _path(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str) -> str:
    places = " ".join(f"{axes.across(x):.1f},{axes.down(y):.1f}" for x, y in zip(steps, values, strict=True))
    return f'<polyline points="{places}" style="fill: none; stroke: var(--{colour}); stroke-width: 1.6"/>'


def _alone(svg: str) -> str:
    """The drawing with its own styles, so that it is a file of its own."""
    styled = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return styled.replace(">", f"><style>{STYLE}</style>", 1) + "\n"

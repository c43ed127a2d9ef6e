"""A sweep for people: sweep.html with one table and one plot, and the same table on the terminal."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from rich.markup import escape as plain
from rich.table import Table

from jobs.console import results
from pipelines.charts import COLOURS, Axes, Line, cell, drawing, figure, line_legend, page

HEIGHT = 360
RATIO = 4
"""Values whose ends are this many times apart are shown on a logarithmic axis."""
AGREEMENT = {"precision_at_100": "P@100", "precision_at_10": "P@10", "recall_at_100": "of exact neighbours"}
"""By log-odds, and in small print by Hamming distance."""
HEALTH = {"effective_bits": "effective bits", "dead_bits": "dead bits", "largest_bucket": "largest bucket"}
OBJECTIVES = ("precision_at_100.log_odds", "precision_at_10.log_odds", "label_free.recall_at_100.log_odds")
"""Those that have a column anyway."""
ON_THE_TERMINAL = {
    "precision_at_100.log_odds": ("P@100", "precision_at_100", "log_odds"),
    "precision_at_100.hamming": ("P@100 Hamming", "precision_at_100", "hamming"),
    "label_free.recall_at_100.log_odds": ("of exact neighbours", "recall_at_100", "log_odds"),
}
Row = dict[str, Any]


def html_report(found: dict[str, Any]) -> str:
    """The page of a sweep as sweep.json has it."""
    body = [
        "<h1>latentbits: sweep</h1>",
        f"<p>{len(found['trials'])} trials of {escape(found['config'])}; objective: {escape(found['objective'])}, "
        "the higher the better.</p>",
        *(f'<p class="warning">{escape(line)}</p>' for line in found["warnings"]),
        *_plot(found),
        "<h2>Trials</h2>",
        _table(found),
        *([f"<h2>The best again</h2><p><code>{escape(found['command'])}</code></p>"] if found["command"] else []),
    ]
    return page("latentbits: sweep", body)


def print_sweep(found: dict[str, Any], html: str) -> None:
    """The trials, the best on top, what went wrong, and how to run the best again."""
    console = results()
    table = Table(box=None, pad_edge=False)
    beside = [shown for name, shown in ON_THE_TERMINAL.items() if name != found["objective"]]
    heads = [found["objective"], *(head for head, _, _ in beside), "seconds"]
    for name in (*map(_last, found["varied"]), *heads):
        table.add_column(plain(name), justify="right")
    for row in found["trials"]:
        figures = [row["objective"], *(row[figure][ranking] for _, figure, ranking in beside)]
        ended = ["failed"] if row["error"] else [*map(_share, figures), _seconds(row)]
        table.add_row(*(plain(str(value)) for value in row["settings"].values()), *ended)
    console.print(table)
    for row in found["trials"]:
        if row["error"]:
            console.print(f"[red]{plain(row['name'])}[/red]: {plain(row['error'])}", soft_wrap=True)
    for line in found["warnings"]:
        console.print(f"[yellow]{plain(line)}[/yellow]", soft_wrap=True)
    console.print(f"page: {plain(html)}", soft_wrap=True)
    if found["command"]:
        console.print(f"the best again: {plain(found['command'])}", soft_wrap=True, highlight=False)


def _table(found: dict[str, Any]) -> str:
    own = [] if found["objective"] in OBJECTIVES else [found["objective"]]
    heads = "".join(f'<th class="figure">{escape(name)}</th>' for name in [*map(_last, found["varied"]), *own])
    heads += "".join(f'<th class="figure">{name} <small>by Hamming</small></th>' for name in AGREEMENT.values())
    heads += "".join(f'<th class="figure">{name}</th>' for name in (*HEALTH.values(), "seconds"))
    rows = "".join(_html_row(row, own=bool(own)) for row in found["trials"])
    return f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'


def _html_row(row: Row, *, own: bool) -> str:
    cells = [f'<td class="figure">{escape(str(value))}</td>' for value in row["settings"].values()]
    if row["error"]:
        width = own + len(AGREEMENT) + len(HEALTH) + 1
        cells.append(f'<td class="alarm" colspan="{width}">failed <small>{escape(row["error"])}</small></td>')
        return f"<tr>{''.join(cells)}</tr>"
    cells += [cell(row["objective"])] if own else []
    for figures in (row[name] for name in AGREEMENT):
        small = f"<small>{_share(figures['hamming'])}</small>"
        cells.append(f'<td class="figure">{_share(figures["log_odds"])} {small}</td>')
    cells += [cell(row["code_health"][name]) for name in HEALTH]
    stages = ", ".join(f"{stage} {value:g}" for stage, value in row["seconds"].items() if value is not None)
    return f'<tr>{"".join(cells)}<td class="figure" title="{escape(stages)}">{_seconds(row)}</td></tr>'


def _plot(found: dict[str, Any]) -> list[str]:
    """The objective over the first varied setting, a line for each combination of the others."""
    first, rows = found["varied"][0], [row for row in found["trials"] if row["error"] is None]
    if not rows:
        return []
    places, marks = _across([row["settings"][first] for row in rows])
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        others = ", ".join(f"{_last(key)} {row['settings'][key]}" for key in found["varied"][1:])
        lines.setdefault(others, []).append((places[row["settings"][first]], row["objective"]))
    heights = [row["objective"] for row in rows]
    ends = (min(places.values()), max(places.values())), (min(heights), max(heights))
    axes = Axes(*ends, HEIGHT, (first, found["objective"]), marks)
    styles = {
        name: Line(name, [], f"c{place % COLOURS}", dashed=place >= COLOURS) for place, name in enumerate(sorted(lines))
    }
    shapes = [shape for name, points in lines.items() for shape in _line(axes, styles[name], sorted(points))]
    said = f"{found['objective']} over {first}, {len(rows)} trials"
    chart = drawing(said, HEIGHT, [*axes.shapes(), *shapes]) + line_legend(
        [styles[name] for name in sorted(lines) if name]
    )
    return [figure(chart, f"{found['objective']} over {first}.")]


def _across(values: Sequence[Any]) -> tuple[dict[Any, float], list[tuple[float, str]]]:
    """Where each value lies on the axis, and its mark: numbers to scale, words one beside the other."""
    distinct = list(dict.fromkeys(values))
    if not all(isinstance(value, int | float) for value in distinct):
        places = {value: float(place) for place, value in enumerate(distinct)}
    elif min(distinct) > 0 and max(distinct) >= RATIO * min(distinct):
        places = {value: math.log10(value) for value in sorted(distinct)}
    else:
        places = {value: float(value) for value in sorted(distinct)}
    return places, [(place, str(value)) for value, place in places.items()]


def _line(axes: Axes, line: Line, points: Sequence[tuple[float, float]]) -> list[str]:
    path = "L".join(f"{axes.across(x):.1f} {axes.down(y):.1f}" for x, y in points)
    dots = [
        f'<circle class="{line.colour}" cx="{axes.across(x):.1f}" cy="{axes.down(y):.1f}" r="3.5">'
        f"<title>{escape(f'{line.name} {y:.4g}'.strip())}</title></circle>"
        for x, y in points
    ]
    return [f'<path style="{line.style}" d="M{path}"/>', *dots]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _seconds(row: Row) -> str:
    known = [value for value in row["seconds"].values() if value is not None]
    return f"{sum(known):.1f}" if known else "-"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

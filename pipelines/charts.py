"""A report as one page without any other file, in light and in dark, and its charts as inline SVG."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 640
LEFT, RIGHT, BELOW = 52, 12, 40
"""Room beside and below a chart with axes, for its numbers."""
COLOURS = 8
"""Groups that have a colour of their own."""
STYLE = """
:root { --paper: #fcfcfb; --ink: #1d1d1b; --soft: #5f5e5a; --line: #dddcd8; --ours: #2563a8; --theirs: #a9a8a2;
  --c0: #2563a8; --c1: #d1671b; --c2: #2a8a57; --c3: #b03a5b; --c4: #7a5cc0; --c5: #8a6d3b; --c6: #1b92a0;
  --c7: #b08c00; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1a1a19; --ink: #eeeeea; --soft: #a9a8a2; --line: #3c3b38; --ours: #6aa5e3; --theirs: #6e6d68;
    --c0: #6aa5e3; --c1: #f0985a; --c2: #5cc48d; --c3: #ea7f9c; --c4: #b19ae8; --c5: #c7a76c; --c6: #5fc9d6;
    --c7: #e3c44a; }
}
:root { color-scheme: light dark; }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 46rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.25rem; }
p, li, figcaption { color: var(--soft); } figure { margin: 1rem 0; overflow-x: auto; }
svg { width: 100%; height: auto; } figure > svg { min-width: 30rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.figure { white-space: normal; vertical-align: bottom; } small { color: var(--soft); display: block; }
.alarm small { color: inherit; }
summary { cursor: pointer; color: var(--soft); } p.warning { border-left: 4px solid var(--c3); padding-left: .75rem; }
td.good { color: var(--soft); font-size: .9rem; } .alarm { color: var(--c3); font-weight: 600; }
text { fill: var(--ink); font: 13px system-ui, sans-serif; } text.soft { fill: var(--soft); }
text.right { text-anchor: end; } text.middle { text-anchor: middle; } text.small { font-size: 11px; }
.ours { fill: var(--ours); } .theirs { fill: var(--theirs); } line { stroke: var(--soft); stroke-dasharray: 3 3; }
line.axis { stroke: var(--line); stroke-dasharray: none; } path { fill: none; stroke-width: 1.6; }
path.ours { stroke: var(--ours); fill: none; } path.prior { stroke: var(--c1); stroke-dasharray: 5 3; }
.pale { fill: var(--theirs); opacity: .55; } circle { opacity: .75; } circle.theirs { opacity: .5; }
""" + "".join(f".c{number} {{ fill: var(--c{number}); }}\n" for number in range(COLOURS))
Number = float | int | None


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    named = f"<title>{escape(title)}</title><style>{STYLE}</style>"
    parts = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}{named}</head>\n<body>\n{parts}\n</body></html>\n'


def drawing(said: str, height: float, shapes: Sequence[str]) -> str:
    """An SVG of WIDTH by `height`; `said` is what it shows, for whoever cannot see it."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(said)}">{"".join(shapes)}</svg>'


def figure(chart: str, caption: str) -> str:
    """A chart with the sentence that says how to read it."""
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def cell(value: Number) -> str:
    """A number in a table."""
    return f'<td class="figure">{number(value)}</td>'


def number(value: Number) -> str:
    """A number for people: four digits, or all of a whole one."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


class Axes:
    """A plane with numbered axes: where a point lies in the drawing, and the axes' own shapes."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        height: float,
        names: tuple[str, str],
        marks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """`marks` are the numbers on the axis across, where they are not round ones."""
        self.x, self.y, self.height, self.names = _widened(x), _widened(y), height, names
        self.marks = [(at, f"{at:g}") for at in ticks(*self.x)] if marks is None else marks

    def across(self, x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - self.x[0]) / (self.x[1] - self.x[0])

    def down(self, y: float) -> float:
        return 8 + (self.height - 8 - BELOW) * (self.y[1] - y) / (self.y[1] - self.y[0])

    def shapes(self) -> list[str]:
        """Grid lines at round numbers, the numbers, and the axes' names."""
        bottom = self.height - BELOW
        shapes = []
        for at, text in self.marks:
            place = self.across(at)
            shapes.append(
                f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="8" y2="{bottom}"/>'
                f'<text class="soft small middle" x="{place:.1f}" y="{bottom + 15}">{escape(text)}</text>'
            )
        for at in ticks(*self.y):
            place = self.down(at)
            shapes.append(
                f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
                f'<text class="soft small right" x="{LEFT - 6}" y="{place + 4:.1f}">{at:g}</text>'
            )
        middle, name = (WIDTH + LEFT) / 2, escape(self.names[0])
        shapes.append(f'<text class="soft small middle" x="{middle:g}" y="{self.height - 6:g}">{name}</text>')
        across = f'transform="rotate(-90)" x="{-bottom / 2:g}" y="11"'
        return [*shapes, f'<text class="soft small middle" {across}>{escape(self.names[1])}</text>']


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between `low` and `high`."""
    rough = (high - low) / about
    power = 10.0 ** _floor_log10(rough)
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = int(-(-low // step))
    return [round(step * place, 12) for place in range(first, first + 2 * about + 2) if step * place <= high]


def columns(said: str, values: Sequence[float], top: float, name: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """One column for each value, as high as its share of `top`, and lines across at `marks`."""
    step = 600 / len(values)
    shapes = [
        f'<rect class="ours" x="{step * place:.2f}" y="{100 * (1 - value / top):.1f}" '
        f'width="{max(0.5, step - min(2, step / 4)):.2f}" height="{100 * value / top:.1f}">'
        f"<title>{escape(name)} {place}: {value:.3g}</title></rect>"
        for place, value in enumerate(values)
    ]
    for value, text in marks:
        y = 100 * (1 - value / top)
        shapes.append(
            f'<line x1="0" x2="610" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="soft small" x="612" y="{max(10.0, y + 4):.1f}">{escape(text)}</text>'
        )
    return drawing(said, 102, shapes)


def scatter(said: str, points: Sequence[tuple[float, float]], groups: Sequence[str], names: tuple[str, str]) -> str:
    """Points in a plane, coloured by group where there are some, the most frequent COLOURS of them; with a legend."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes = Axes((min(xs), max(xs)), (min(ys), max(ys)), 400, names)
    frequent = sorted({group for group in groups if group}, key=lambda group: (-groups.count(group), group))[:COLOURS]
    classes = {group: f"c{place}" for place, group in enumerate(frequent)} if frequent else {"": "ours"}
    dots = [
        f'<circle class="{classes.get(group, "theirs")}" cx="{axes.across(x):.1f}" cy="{axes.down(y):.1f}" r="2.8">'
        f"{f'<title>{escape(group)}</title>' if group else ''}</circle>"
        for (x, y), group in zip(points, groups, strict=True)
    ]
    keys = [("theirs", "others")] if frequent and len(set(groups)) > len(frequent) else []
    keys = [(classes[group], group) for group in frequent] + keys
    return drawing(said, 400, [*axes.shapes(), *dots]) + legend(keys)


class Line(NamedTuple):
    """One of several lines of a chart."""

    name: str
    values: Sequence[float]
    colour: str
    """A variable of STYLE."""
    dashed: bool = False
    thick: bool = False

    @property
    def style(self) -> str:
        dashes = ";stroke-dasharray:6 4" if self.dashed else ";stroke-dasharray:none"
        return f"fill:none;stroke:var(--{self.colour});stroke-width:{3 if self.thick else 1.6}{dashes}"


def rank_lines(said: str, ranks: Sequence[int], lines: Sequence[Line], name: str) -> str:
    """Lines over ranks, which are on a logarithmic axis; with a legend."""
    places = [math.log10(rank) for rank in ranks]
    ends = [value for line in lines for value in line.values]
    marks = [(place, f"{rank:,}") for place, rank in zip(places, ranks, strict=True)]
    axes = Axes((places[0], places[-1]), (min(0, *ends), max(ends)), 340, ("rank", name), marks)
    shapes = []
    for line in lines:
        points = zip(places, line.values, strict=True)
        path = "L".join(f"{axes.across(x):.1f} {axes.down(y):.1f}" for x, y in points)
        shapes.append(f'<path style="{line.style}" d="M{path}"><title>{escape(line.name)}</title></path>')
    return drawing(said, 340, [*axes.shapes(), *shapes]) + line_legend(lines)


def line_legend(lines: Sequence[Line]) -> str:
    """What each line stands for, as text under a drawing."""
    sample = '<svg style="width:1.8em;height:.7em" viewBox="0 0 26 10"><path style="{}" d="M0 5L26 5"/></svg>'
    keys = [
        f'<span style="white-space:nowrap">{sample.format(line.style)} {escape(line.name)}</span>' for line in lines
    ]
    return f"<p>{' &nbsp; '.join(keys)}</p>" if keys else ""


def legend(keys: Sequence[tuple[str, str]]) -> str:
    """What each class of dots stands for, as text under a drawing."""
    dot = '<svg style="width:.7em;height:.7em" viewBox="0 0 10 10"><circle class="{}" cx="5" cy="5" r="5"/></svg>'
    entries = [f"{dot.format(style)} {escape(name)}" for style, name in keys]
    return f"<p>{' &nbsp; '.join(entries)}</p>" if entries else ""


def steps(heights: Sequence[float], left: float, width: float, base: float, height: float, top: float) -> str:
    """The outline of a histogram as an SVG path; `height` stands for `top`."""
    step, d = width / len(heights), f"M{left:.1f} {base:.1f}"
    for place, value in enumerate(heights):
        d += f"V{base - height * value / top:.1f}H{left + step * (place + 1):.1f}"
    return f"{d}V{base:.1f}"


def _widened(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    room = 0.05 * (high - low) or max(1e-6, 0.1 * abs(low)) or 1.0
    return low - room, high + room


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])

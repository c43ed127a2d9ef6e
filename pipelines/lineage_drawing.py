"""Lineage as a graph: boxes of what was made, arrows from what it was made from; as Mermaid text or as SVG."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from pipelines.charts import STYLE
from pipelines.lineage import Origin

BOX, ACROSS, DOWN, LINE = 250, 300, 30, 16
SHOWN = 36
"""Characters of a line in a box."""
Edges = list[tuple[int, int]]


def mermaid(origin: Origin) -> str:
    """A Mermaid flowchart, as Markdown viewers draw it."""
    nodes, edges = _graph(origin)
    lines = ["flowchart LR"]
    for number, node in enumerate(nodes):
        text = "<br/>".join(_escaped(line) for line in _lines(node))
        lines.append(f'  n{number}["{text}"]')
    lines += [f"  n{source} --> n{made}" for made, source in edges]
    return "\n".join(lines) + "\n"


def svg(origin: Origin) -> str:
    """The same as a drawing: what was made first is on the left."""
    nodes, edges = _graph(origin)
    depth = _depths(len(nodes), edges)
    heights = [LINE * len(_lines(node)) + 16 for node in nodes]
    tops, bottoms = [0.0] * len(nodes), [12.0] * (max(depth) + 1)
    for number, column in enumerate(depth):
        tops[number] = bottoms[column]
        bottoms[column] += heights[number] + DOWN
    left = [12 + ACROSS * (max(depth) - column) for column in depth]
    bottom = max(bottoms)
    width, height = 24 + BOX + ACROSS * max(depth), bottom + 2 * DOWN
    shapes = []
    for made, source in edges:
        if depth[source] - depth[made] == 1:
            shapes.append(_arrow(left, tops, heights, made, source))
        else:
            shapes.append(_arrow_below(left, tops, heights, made, source, bottom))
    shapes += [_box(node, left[number], tops[number], heights[number]) for number, node in enumerate(nodes)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
    said = f' aria-label="where {escape(origin.place)} is from">'
    style = f"<style>{STYLE} rect {{ fill: var(--paper); stroke: var(--theirs); }}</style>"
    return f"{head}{said}{style}{''.join(shapes)}</svg>\n"


def _graph(origin: Origin) -> tuple[list[Origin], Edges]:
    """Each thing once, however many others were made from it, and pairs of (made, source)."""
    nodes: list[Origin] = []
    numbers: dict[tuple[str, str], int] = {}
    edges: Edges = []

    def add(one: Origin) -> int:
        key = (one.name.partition(": ")[2] or one.name, one.place)
        if key not in numbers:
            numbers[key] = len(nodes)
            nodes.append(one)
        number = numbers[key]
        # Of one document more is known on one way back than on another.
        nodes[number] = replace(nodes[number], facts=one.facts | nodes[number].facts)
        for source in one.made_from:
            edges.append((number, add(source)))
        return number

    add(origin)
    return nodes, list(dict.fromkeys(edges))


def _depths(count: int, edges: Edges) -> list[int]:
    """How many steps back each lies at most."""
    depth = [0] * count
    for _ in range(count):
        for made, source in edges:
            depth[source] = max(depth[source], depth[made] + 1)
    return depth


def _lines(node: Origin) -> list[str]:
    lines = [node.name, _end_of(node.place)]
    facts = (f"{name} {value}" for name, value in node.facts.items())
    lines += [text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..." for text in facts]
    return [*lines, *([node.state.upper()] if node.state else [])]


def _end_of(text: str) -> str:
    return text if len(text) <= SHOWN else f"...{text[3 - SHOWN :]}"


def _box(node: Origin, left: float, top: float, height: float) -> str:
    texts = []
    for number, line in enumerate(_lines(node)):
        kind = "" if number == 0 else ' class="soft small"'
        texts.append(f'<text{kind} x="{left + 8:g}" y="{top + 18 + LINE * number:g}">{escape(line)}</text>')
    alarm = ' style="stroke: var(--c3)"' if node.state else ""
    return f'<rect x="{left:g}" y="{top:g}" width="{BOX}" height="{height:g}" rx="5"{alarm}/>{"".join(texts)}'


def _arrow(left: Sequence[float], tops: Sequence[float], heights: Sequence[float], made: int, source: int) -> str:
    x1, y1 = left[source] + BOX, tops[source] + heights[source] / 2
    x2, y2 = left[made], tops[made] + heights[made] / 2
    bend = (x1 + x2) / 2
    head = f"M{x2 - 7:g},{y2 - 4:g} L{x2:g},{y2:g} L{x2 - 7:g},{y2 + 4:g}"
    return f'<path class="ours" d="M{x1:g},{y1:g} C{bend:g},{y1:g} {bend:g},{y2:g} {x2:g},{y2:g} {head}"/>'


def _arrow_below(
    left: Sequence[float], tops: Sequence[float], heights: Sequence[float], made: int, source: int, bottom: float
) -> str:
    """Past the boxes that lie between the two."""
    x1, y1 = left[source] + BOX / 2, tops[source] + heights[source]
    x2, y2 = left[made] + BOX / 2, tops[made] + heights[made]
    low, head = bottom + DOWN, f"M{x2 - 4:g},{y2 + 7:g} L{x2:g},{y2:g} L{x2 + 4:g},{y2 + 7:g}"
    return f'<path class="ours" d="M{x1:g},{y1:g} C{x1:g},{low:g} {x2:g},{low:g} {x2:g},{y2:g} {head}"/>'


def _escaped(text: str) -> str:
    return escape(text).replace('"', "&quot;").replace("#", "#35;")

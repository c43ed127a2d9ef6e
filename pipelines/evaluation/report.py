"""report.html: the figures of report.json as one page."""

from html import escape
from typing import Any

from pipelines.charts import Axes, Line, cell, columns, drawing, figure, number, page, rank_lines

NAMES = {
    "log_odds": "ours, by log-odds",
    "hamming": "ours, by Hamming",
    "simhash": "SimHash",
    "sign_random_projection": "sign random projection",
    "lsi_itq": "LSI + ITQ, by Hamming",
    "lsi_itq_asymmetric": "LSI + ITQ, asymmetric",
    "encoder_signs": "encoder, signs of all dimensions",
    "encoder_itq": "encoder + ITQ, by Hamming",
    "encoder_itq_asymmetric": "encoder + ITQ, asymmetric",
    "tfidf": "tf-idf cosine",
    "bm25": "BM25",
    "lsi": "LSI cosine, 128 floats",
    "encoder": "encoder cosine",
}
COLOURS = {
    "log_odds": "c0",
    "hamming": "c0",
    "lsi_itq": "c1",
    "lsi_itq_asymmetric": "c1",
    "lsi": "soft",
    "tfidf": "c2",
    "bm25": "c4",
    "simhash": "c5",
    "sign_random_projection": "c6",
    "encoder_itq": "c3",
    "encoder_itq_asymmetric": "c3",
    "encoder_signs": "c7",
    "encoder": "c7",
}
DASHED = ("hamming", "lsi_itq", "encoder_itq", "encoder_signs", "simhash", "sign_random_projection")
"""Rankings by Hamming distance."""
OURS = ("log_odds", "hamming")
HEALTH = {
    "distinct_codes": "distinct codes",
    "effective_bits": "effective bits",
    "collision_rate": "collision rate",
    "largest_bucket": "largest bucket, share of documents",
    "dead_bits": "dead bits",
    "active_bits": "active bits: a one in 1 to 99 % of the codes",
    "bit_balance_mean": "share of ones, mean over bits",
    "correlation_mean": "correlation of two bits, mean",
    "correlation_max": "correlation of two bits, largest",
    "components_used": "components used",
    "effective_components": "effective components",
    "mean_confidence": "mean confidence",
}
MORE_HEALTH = {
    "active_units": "active units: their probability varies over the queries",
    "rate": "rate, nats a document",
    "uninformative": "share of documents without a known word",
}
NAMED = 0.02
"""Components of a smaller share have no name on the map, where they would hide one another's."""


def html_report(report: dict[str, Any]) -> str:
    """The page for a report as `evaluate` makes it."""
    facts = f"{report['documents']:,} documents, {report['bits']} bits each; {report['asked']:,} queries"
    body = [
        "<h1>latentbits: evaluation</h1>",
        f"<p>{facts}</p>",
        *(f'<p class="warning">{escape(line)}</p>' for line in report["warnings"]),
        *_precision(report),
        *_label_free(report["label_free"]),
        *_labels(report),
        "<h2>Code health</h2>",
        health_table(report["code_health"], HEALTH | MORE_HEALTH),
        *_ties(report["ties_at_100"]),
        balance_chart(report["code_health"]["bit_means"] or []),
        *_rate(report["code_health"]),
        *_components(report["code_health"]["components"]),
        *(_drift(report["drift"]) if "drift" in report else ()),
        "<h2>How this was measured</h2>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in report["protocol"]) + "</ul>",
    ]
    return page("latentbits: evaluation", body)


def _precision(report: dict[str, Any]) -> list[str]:
    if report["precision_at_100"]["log_odds"] is None:
        return ["<h2>Precision</h2>", "<p>Not measured: there are no labels.</p>"]
    return ["<h2>Precision at 100</h2>", _precision_chart(report), _precision_table(report), *_curves(report["curves"])]


def _precision_table(report: dict[str, Any]) -> str:
    at_100 = report["ties_averaged"] | report["references"]
    at_10 = report["ties_averaged_at_10"] | report["references_at_10"]
    own = {name: report["precision_at_100"].get(name, report["baselines"].get(name)) for name in at_100}
    behind = report["intervals"]["differences_at_100"]["log_odds"]
    rows = []
    for name, value in at_100.items():
        low, high = report["intervals"]["precision_at_100"][name]
        cells = [f'<td class="figure">{value:.3f} <small>{low:.3f} to {high:.3f}</small></td>']
        cells.append(_share(at_10[name]))
        cells.append(_share(own[name] if name not in report["references"] else None))
        cells.append(_difference(behind.get(name)))
        rows.append(f"<tr><td>{escape(NAMES[name])}</td>{''.join(cells)}</tr>")
    heads = ("P@100", "P@10", "P@100 in own order", "log-odds is above it by")
    head = "".join(f'<th class="figure">{one}</th>' for one in heads)
    return f'<div class="wide"><table><tr><th>ranking</th>{head}</tr>{"".join(rows)}</table></div>'


def _share(value: float | None) -> str:
    """A precision or another share in a table."""
    return cell(None) if value is None else f'<td class="figure">{value:.3f}</td>'


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return cell(None)
    low, high = found["interval"]
    style = " alarm" if high < 0 else ""
    return f'<td class="figure{style}">{found["mean"]:+.3f} <small>{low:+.3f} to {high:+.3f}</small></td>'


def _precision_chart(report: dict[str, Any]) -> str:
    shown: dict[str, float] = report["ties_averaged"] | report["references"]
    top = max(*shown.values(), 1e-9)
    bars = []
    for place, (name, value) in enumerate(shown.items()):
        y, width = 30 * place + 4, 330 * value / top
        low, high = (330 * end / top for end in report["intervals"]["precision_at_100"][name])
        side = "ours" if name in OURS else "theirs"
        bars.append(
            f'<text x="0" y="{y + 15}">{escape(NAMES[name])}</text>'
            f'<rect class="{side}" x="220" y="{y}" width="{width:.1f}" height="20" rx="2"/>'
            f'<line style="stroke:var(--ink);stroke-dasharray:none" x1="{220 + low:.1f}" x2="{220 + high:.1f}" '
            f'y1="{y + 10}" y2="{y + 10}"/>'
            f'<text x="{228 + max(width, high):.1f}" y="{y + 15}">{value:.3f}</text>'
        )
    said = "Precision at 100: " + ", ".join(f"{NAMES[name]} {value:.3f}" for name, value in shown.items())
    caption = (
        "Ties averaged; the line over the end of a bar, and the small print below, is the 95 % bootstrap interval."
    )
    return figure(drawing(said, 30 * len(shown) + 4, bars), caption)


def _curves(curves: dict[str, Any]) -> list[str]:
    charts = []
    for kind in ("precision", "recall"):
        lines = [
            Line(NAMES[name], values, COLOURS[name], name in DASHED, name in OURS)
            for name, values in curves[kind].items()
        ]
        said = f"{kind.capitalize()} by rank of {len(lines)} rankings"
        caption = f"{kind.capitalize()} by rank, ties averaged. Dashed: ranked by Hamming distance."
        charts.append(figure(rank_lines(said, curves["ranks"], lines, kind), caption))
    return ["<h2>By rank</h2>", *charts]


def _label_free(found: dict[str, Any]) -> list[str]:
    if found["reference"] is None:
        return []
    recall, gains = found["recall_at_100"], found["ndcg_at_100"]
    rows = [f"<tr><td>{escape(NAMES[name])}</td>{_share(recall[name])}{_share(gains[name])}</tr>" for name in recall]
    head = '<tr><th>ranking</th><th class="figure">recall@100</th><th class="figure">nDCG@100</th></tr>'
    said = f"How many of the 100 exact nearest documents by {found['reference']} each ranking finds; no label is read."
    return [
        "<h2>Without labels</h2>",
        f"<p>{said}</p>",
        f'<div class="wide"><table>{head}{"".join(rows)}</table></div>',
    ]


def _labels(report: dict[str, Any]) -> list[str]:
    rows = report["labels"]
    if not rows:
        return []
    shown = [name for name in ("log_odds", "hamming", "lsi_itq_asymmetric", "encoder", "tfidf") if name in rows[0]]
    heads = "".join(f'<th class="figure">{escape(name)}</th>' for name in ("queries", "documents"))
    heads += "".join(f'<th class="figure">{escape(NAMES[name])}</th>' for name in shown)
    lines = [
        f"<tr><td>{escape(str(row['label']))}</td>{cell(row['queries'])}{cell(row['documents'])}"
        f"{''.join(_share(row[name]) for name in shown)}</tr>"
        for row in rows
    ]
    table = f'<div class="wide"><table><tr><th>label</th>{heads}</tr>{"".join(lines)}</table></div>'
    opened = " open" if len(rows) <= 25 else ""
    said = f"P@100 over the queries of each of {len(rows)} labels"
    return ["<h2>By label</h2>", f"<details{opened}><summary>{said}</summary>{table}</details>"]


def health_table(health: dict[str, Any], names: dict[str, str] = HEALTH) -> str:
    """The figures of code health that are one number."""
    rows = [f"<tr><td>{name}</td>{cell(health[key])}</tr>" for key, name in names.items()]
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def balance_chart(means: list[float]) -> str:
    """The share of ones of each bit."""
    if not means:
        return ""
    said = f"Share of ones of each bit, from {min(means):.3f} to {max(means):.3f}"
    return figure(columns(said, means, 1.0, "bit", [(0.5, "0.5")]), f"{said}; half is best, 0 and 1 are dead bits.")


def _ties(sizes: dict[str, float]) -> list[str]:
    shown = [f"{number(sizes[name])} by {said}" for name, said in (("log_odds", "log-odds"), ("hamming", "Hamming"))]
    return [f"<p>Documents that tie with the 100th nearest, itself included, on average: {' and '.join(shown)}.</p>"]


def _rate(health: dict[str, Any]) -> list[str]:
    groups = health["kl_groups"]
    if not groups or max(groups) <= 0:
        return []
    top = max(max(groups), 0.7)
    said = f"Rate of each group in nats, from {min(groups):.3f} to {max(groups):.3f}"
    caption = (
        f"{said}: the bits in their order, then the component where there is one. A bit holds ln 2 = 0.693 at most "
    )
    caption += "under an even prior; near 0 it says nothing."
    return [figure(columns(said, [max(0.0, one) for one in groups], top, "group", [(0.693, "ln 2")]), caption)]


def _components(components: list[dict[str, Any]]) -> list[str]:
    if len(components) < 2:
        return []
    rows = [
        f"<tr><td>{one['component']}</td>{_share(one['share'])}<td>{escape(' '.join(one['words']))}</td></tr>"
        for one in components
    ]
    head = '<tr><th>component</th><th class="figure">share</th><th>words that it raises most</th></tr>'
    caption = "Components by the mean code of their documents, on its two main directions; areas are shares of the "
    caption += "documents, small ones unnamed. Good: many, of similar size, apart from one another."
    table = f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'
    return ["<h2>Components</h2>", figure(_component_map(components), caption), table]


def _component_map(components: list[dict[str, Any]]) -> str:
    xs, ys = ([one[name] for one in components] for name in "xy")
    (left, right), (low, high) = ((min(ends), max(ends)) for ends in (xs, ys))
    aside, above = 0.12 * (right - left), 0.1 * (high - low)
    axes = Axes(
        (left - aside, right + aside), (low - above, high + above), 420, ("first direction", "second direction")
    )
    circles, names = [], []
    for one in components:
        x, y, radius = axes.across(one["x"]), axes.down(one["y"]), 60 * one["share"] ** 0.5
        said = escape(f"component {one['component']}, {one['share']:.1%}: {' '.join(one['words'])}")
        circles.append(
            f'<circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{said}</title></circle>'
        )
        if one["share"] >= NAMED:
            name = escape(" ".join(one["words"][:2]) or str(one["component"]))
            at, side = (x - radius - 3, "right") if x > 480 else (x + radius + 3, "left")
            names.append(f'<text class="small {side}" x="{at:.1f}" y="{y + 4:.1f}">{name}</text>')
    return drawing(f"Map of {len(components)} components", 420, [*axes.shapes(), *circles, *names])


def _drift(drift: dict[str, Any]) -> list[str]:
    rows = {
        "documents in both": drift["documents"],
        "mean Hamming distance of a document's two codes": drift["mean_distance"],
        "share of documents whose code is the same": drift["unchanged"],
        "of the 10 nearest documents, both agree on": drift["neighbours_kept_at_10"],
        "of the 100 nearest documents, both agree on": drift["neighbours_kept_at_100"],
    }
    lines = [f"<tr><td>{name}</td>{cell(value)}</tr>" for name, value in rows.items()]
    body = ["<h2>Drift from the other codes</h2>", f'<div class="wide"><table>{"".join(lines)}</table></div>']
    if flips := drift["flip_rates"]:
        said = f"Share of documents in which each bit differs, from {min(flips):.3f} to {max(flips):.3f}"
        caption = f"{said}; bits of two models that were trained apart differ in about half."
        body.append(figure(columns(said, flips, 1.0, "bit", [(0.5, "0.5")]), caption))
    return body

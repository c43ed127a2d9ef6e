"""report.html: the figures of report.json as one page without any other file, in light and in dark."""

from html import escape
from typing import Any

NAMES = {
    "log_odds": "ours, by log-odds",
    "hamming": "ours, by Hamming",
    "hamming_ties_averaged": "ours, by Hamming, over random tie orders",
    "simhash": "SimHash",
    "sign_random_projection": "sign random projection",
}
OURS = ("log_odds", "hamming")
HEALTH = {
    "distinct_codes": "distinct codes",
    "effective_bits": "effective bits",
    "collision_rate": "collision rate",
    "largest_bucket": "largest bucket, share of documents",
    "dead_bits": "dead bits",
    "bit_balance_mean": "share of ones, mean over bits",
    "correlation_mean": "correlation of two bits, mean",
    "correlation_max": "correlation of two bits, largest",
    "components_used": "components used",
    "effective_components": "effective components",
    "mean_confidence": "mean confidence",
}
STYLE = """
:root { --paper: #fcfcfb; --ink: #1d1d1b; --soft: #5f5e5a; --line: #dddcd8; --ours: #2563a8; --theirs: #a9a8a2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1a1a19; --ink: #eeeeea; --soft: #a9a8a2; --line: #3c3b38; --ours: #6aa5e3; --theirs: #6e6d68; }
}
:root { color-scheme: light dark; }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 46rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.25rem; }
p, li, figcaption { color: var(--soft); } figure { margin: 1rem 0; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; }
text { fill: var(--ink); font: 13px system-ui, sans-serif; } text.soft { fill: var(--soft); }
.ours { fill: var(--ours); } .theirs { fill: var(--theirs); } line { stroke: var(--soft); stroke-dasharray: 3 3; }
"""
Figures = dict[str, float | None]


def html_report(report: dict[str, Any]) -> str:
    """The page for a report as `evaluate` makes it."""
    facts = f"{report['documents']:,} documents, {report['bits']} bits each; {report['queries']:,} queries"
    body = [
        "<h1>latentbits: evaluation</h1>",
        f"<p>{facts}</p>",
        *_precision(report),
        "<h2>Code health</h2>",
        _health_table(report["code_health"]),
        _balance_chart(report["code_health"]["bit_means"] or []),
        "<h2>How this was measured</h2>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in report["protocol"]) + "</ul>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>latentbits: evaluation</title><style>{STYLE}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{title}</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _precision(report: dict[str, Any]) -> list[str]:
    at_100: Figures = report["precision_at_100"] | report["baselines"]
    at_10: Figures = report["precision_at_10"] | report["baselines_at_10"]
    if at_100["log_odds"] is None:
        return ["<h2>Precision</h2>", "<p>Not measured: there are no labels.</p>"]
    return ["<h2>Precision at 100</h2>", _precision_chart(at_100), _precision_table(at_100, at_10)]


def _precision_table(at_100: Figures, at_10: Figures) -> str:
    rows = [
        f"<tr><td>{escape(NAMES.get(name, name))}</td>{_cell(value)}{_cell(at_10[name])}</tr>"
        for name, value in at_100.items()
    ]
    head = '<tr><th>codes</th><th class="figure">P@100</th><th class="figure">P@10</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _precision_chart(at_100: Figures) -> str:
    shown = {name: value for name, value in at_100.items() if name != "hamming_ties_averaged" and value is not None}
    bars = []
    for number, (name, value) in enumerate(shown.items()):
        top, width = 30 * number + 4, 380 * value
        side = "ours" if name in OURS else "theirs"
        bars.append(
            f'<text x="0" y="{top + 15}">{escape(NAMES.get(name, name))}</text>'
            f'<rect class="{side}" x="180" y="{top}" width="{width:.1f}" height="20" rx="2"/>'
            f'<text x="{188 + width:.1f}" y="{top + 15}">{value:.3f}</text>'
        )
    said = ", ".join(f"{NAMES.get(name, name)} {value:.3f}" for name, value in shown.items())
    drawing = _drawing(f"Precision at 100: {said}", 30 * len(shown) + 4, bars)
    return f"<figure>{drawing}</figure>"


def _health_table(health: dict[str, Any]) -> str:
    rows = [f"<tr><td>{name}</td>{_cell(health[key])}</tr>" for key, name in HEALTH.items()]
    return f"<table>{''.join(rows)}</table>"


def _balance_chart(means: list[float]) -> str:
    if not means:
        return ""
    step = 600 / len(means)
    bars = [
        f'<rect class="ours" x="{step * bit:.2f}" y="{100 * (1 - mean):.1f}" '
        f'width="{max(0.5, step - min(2, step / 4)):.2f}" height="{100 * mean:.1f}">'
        f"<title>bit {bit}: {mean:.3f}</title></rect>"
        for bit, mean in enumerate(means)
    ]
    half = '<line x1="0" x2="610" y1="50" y2="50"/><text class="soft" x="614" y="54">0.5</text>'
    said = f"Share of ones of each bit, from {min(means):.3f} to {max(means):.3f}"
    caption = f"{said}; half is best, 0 and 1 are dead bits."
    return f"<figure>{_drawing(said, 100, [*bars, half])}<figcaption>{caption}</figcaption></figure>"


def _drawing(said: str, height: int, shapes: list[str]) -> str:
    return f'<svg viewBox="0 0 640 {height}" role="img" aria-label="{escape(said)}">{"".join(shapes)}</svg>'


def _cell(value: float | None) -> str:
    shown = "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<td class="figure">{shown}</td>'

"""report.html: the figures of report.json as one page."""

from html import escape
from typing import Any

from pipelines.charts import cell, columns, drawing, figure, page

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
Figures = dict[str, float | None]


def html_report(report: dict[str, Any]) -> str:
    """The page for a report as `evaluate` makes it."""
    facts = f"{report['documents']:,} documents, {report['bits']} bits each; {report['queries']:,} queries"
    body = [
        "<h1>latentbits: evaluation</h1>",
        f"<p>{facts}</p>",
        *_precision(report),
        "<h2>Code health</h2>",
        health_table(report["code_health"]),
        balance_chart(report["code_health"]["bit_means"] or []),
        "<h2>How this was measured</h2>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in report["protocol"]) + "</ul>",
    ]
    return page("latentbits: evaluation", body)


def _precision(report: dict[str, Any]) -> list[str]:
    at_100: Figures = report["precision_at_100"] | report["baselines"]
    at_10: Figures = report["precision_at_10"] | report["baselines_at_10"]
    if at_100["log_odds"] is None:
        return ["<h2>Precision</h2>", "<p>Not measured: there are no labels.</p>"]
    return ["<h2>Precision at 100</h2>", _precision_chart(at_100), _precision_table(at_100, at_10)]


def _precision_table(at_100: Figures, at_10: Figures) -> str:
    rows = [
        f"<tr><td>{escape(NAMES.get(name, name))}</td>{cell(value)}{cell(at_10[name])}</tr>"
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
    return f"<figure>{drawing(f'Precision at 100: {said}', 30 * len(shown) + 4, bars)}</figure>"


def health_table(health: dict[str, Any]) -> str:
    """The figures of code health that are one number."""
    rows = [f"<tr><td>{name}</td>{cell(health[key])}</tr>" for key, name in HEALTH.items()]
    return f"<table>{''.join(rows)}</table>"


def balance_chart(means: list[float]) -> str:
    """The share of ones of each bit."""
    if not means:
        return ""
    said = f"Share of ones of each bit, from {min(means):.3f} to {max(means):.3f}"
    return figure(columns(said, means, 1.0, "bit", [(0.5, "0.5")]), f"{said}; half is best, 0 and 1 are dead bits.")

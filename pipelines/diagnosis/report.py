"""diagnosis.html: the figures of diagnosis.json as one page, each with a sentence that says what is good."""

from html import escape
from typing import Any

from pipelines.charts import LEFT, RIGHT, WIDTH, Axes, cell, columns, drawing, figure, legend, number, page
from pipelines.diagnosis.latent_plots import Space, latent_space
from pipelines.evaluation.report import balance_chart, health_table

COMPONENTS_SHOWN = 20
NAMES = {
    "elbo": ("ELBO", "Higher is better, at the same decoder: the bound on log p(x) that training raises."),
    "distortion": ("distortion D", "Lower: what the text costs once z is known."),
    "rate": ("rate R", "Well above 0: at 0 the decoder ignores z. More than the decoder uses is waste."),
}


def html_diagnosis(diagnosis: dict[str, Any], space: Space | None) -> str:
    """The page for a diagnosis as `diagnose` makes it."""
    facts = (
        f"{diagnosis['latent'].replace('_', ' ')} latent, {diagnosis['decoder'].replace('_', ' ')} decoder, "
        f"{diagnosis['documents']:,} documents"
    )
    body = ["<h1>latentbits: diagnosis</h1>", f"<p>{escape(facts)}</p>"]
    if diagnosis.get("collapsed"):
        body.append('<p class="alarm">The posterior has collapsed: z says next to nothing of the documents.</p>')
    body += [
        _figures(diagnosis),
        *_plane(diagnosis["compared"]),
        *_groups(diagnosis["kl_groups"], bool(diagnosis.get("components"))),
    ]
    body += [
        *(latent_space(space) if space else []),
        *_against_prior(diagnosis),
        *_components(diagnosis.get("components")),
        *_probe(diagnosis.get("probe")),
    ]
    if diagnosis.get("code_health"):
        health = diagnosis["code_health"]
        body += ["<h2>Code health of the sample</h2>", health_table(health), balance_chart(health["bit_means"] or [])]
    lines = "".join(f"<li>{escape(line)}</li>" for line in diagnosis["protocol"])
    return page("latentbits: diagnosis", [*body, "<h2>How this was measured</h2>", f"<ul>{lines}</ul>"])


def _figures(diagnosis: dict[str, Any]) -> str:
    rows = [*_likelihood_rows(diagnosis)]
    for key, (name, good) in NAMES.items():
        rows.append(_row(name, _with_error(diagnosis[key], diagnosis[f"{key}_error"]), good))
    if diagnosis["vectors_kept"] is not None:
        kept = f"{100 * diagnosis['vectors_kept']:.1f} %"
        rows.append(_row("vectors kept", kept, "As few as the decoder can do with: the rest were dropped."))
    if "information" in diagnosis:
        rows += _information_rows(diagnosis)
    head = '<tr><th>figure</th><th class="figure">value</th><th>what is good</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _likelihood_rows(diagnosis: dict[str, Any]) -> list[str]:
    found = diagnosis["likelihood"]
    if found is None:
        return [_row("log p(x), perplexity", "-", f"Not defined: {diagnosis['no_likelihood']}.")]
    how = "exact" if found["exact"] else f"{found['effective_samples']['of']} samples"
    rows = [
        _row(f"log p(x), {how}", _with_error(found["log_px"], found["log_px_error"]), "Higher is better."),
        _row("perplexity", _with_error(found["perplexity"], found["perplexity_error"]), "Lower is better."),
        _row("perplexity by the ELBO", number(found["perplexity_by_elbo"]), "Near the one above: q is near p(z | x)."),
    ]
    if found["effective_samples"]:
        effective = found["effective_samples"]
        shown = f"{number(effective['median'])} (least {number(effective['smallest'])})"
        rows.append(_row(f"effective samples of {effective['of']}", shown, "Far above 1, or log p(x) is too low."))
        bounds = "<br>".join(f"{count}: {number(value)}" for count, value in found["bounds"].items())
        rows.append(_row("log p(x) by samples", bounds, "Level at the end: more samples would change little."))
    return rows


def _information_rows(diagnosis: dict[str, Any]) -> list[str]:
    information = diagnosis["information"]
    good = "Near R: what is paid for is used."
    if diagnosis["saturated"]:
        good = "At the most that so few documents can show; take more with diagnose.documents."
    if diagnosis["information_at_most"]:
        good += f" At most {number(diagnosis['information_at_most'])}, all that z can hold."
    rows = [
        _row("information I(X; Z)", _range(information), good),
        _row(
            "marginal KL(q(z) || p(z))", _range(diagnosis["marginal_kl"]), "Near 0: the prior draws what is decodable."
        ),
        _row(
            "active units",
            f"{diagnosis['active_units']:,} of {diagnosis['units']:,}",
            "Most of them; 0 is a collapsed posterior.",
        ),
    ]
    if diagnosis["entropy_less_distortion"] is not None:
        shown = number(diagnosis["entropy_less_distortion"])
        rows.append(_row("H - D", shown, "Below I by as little as possible: the decoder uses what z says."))
    return rows


def _plane(compared: list[dict[str, Any]]) -> list[str]:
    """Rate against distortion; along a line of slope -1 the ELBO is the same."""
    drawn = [row for row in compared if row["same_target"]]
    rates, distortions = [row["rate"] for row in drawn], [row["distortion"] for row in drawn]
    room = max(1.0, 0.15 * max(*rates, max(distortions) - min(distortions)))
    axes = Axes(
        (0.0, max(rates) + room), (min(distortions) - room, max(distortions) + room), 360, ("rate R", "distortion D")
    )
    shapes = axes.shapes()
    for rate, distortion in zip(rates, distortions, strict=True):
        shapes.append(_equal_elbo(axes, rate + distortion))
    for place, row in enumerate(drawn):
        x, y = axes.across(row["rate"]), axes.down(row["distortion"])
        beside = f'x="{x - 9:.1f}" class="small right"' if x > WIDTH - 160 else f'x="{x + 9:.1f}" class="small"'
        shapes.append(
            f'<circle class="{"ours" if place == 0 else "c1"}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            f'<text {beside} y="{y - 7:.1f}">{escape(row["model"])}</text>'
        )
    said = "; ".join(f"{row['model']}: R {number(row['rate'])}, D {number(row['distortion'])}" for row in drawn)
    caption = "Lower left is better. Along a dashed line R + D, and so the ELBO, is the same. "
    if len(drawn) < len(compared):
        caption += "Models whose decoder writes something else are left out: their distortions are of other things."
    parts = ["<h2>Rate and distortion</h2>", figure(drawing(said, 360, shapes), caption)]
    return [*parts, _plane_table(compared)] if len(compared) > 1 else parts


def _equal_elbo(axes: Axes, total: float) -> str:
    """The part of D = total - R that lies in the plane."""
    low = max(axes.x[0], total - axes.y[1])
    high = min(axes.x[1], total - axes.y[0])
    ends = f'x1="{axes.across(low):.1f}" y1="{axes.down(total - low):.1f}" '
    return f'<line {ends}x2="{axes.across(high):.1f}" y2="{axes.down(total - high):.1f}"/>'


def _plane_table(compared: list[dict[str, Any]]) -> str:
    names = ("model", "R", "D", "ELBO", "I", "marginal KL", "active units")
    head = "".join(f"<th{' class=figure' if place else ''}>{name}</th>" for place, name in enumerate(names))
    rows = []
    for row in compared:
        ranges = [f'<td class="figure">{_range(row[name])}</td>' for name in ("information", "marginal_kl")]
        numbers = [cell(row[name]) for name in ("rate", "distortion", "elbo")]
        rows.append(
            f"<tr><td>{escape(row['model'])}</td>{''.join([*numbers, *ranges, cell(row['active_units'])])}</tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _groups(groups: list[float], mixture: bool) -> list[str]:
    top = max(*groups, 0.02)
    quiet = sum(value <= 0.01 for value in groups)
    said = f"Mean KL of {len(groups)} groups, from {number(min(groups))} to {number(max(groups))} nats"
    caption = f"{said}; {quiet} at most 0.01. Good: many groups well above 0, none that carries nearly all."
    caption += " The last group is the component." if mixture else ""
    chart = columns(said, [max(0.0, nats) for nats in groups], top, "group", [(top, f"{top:.2g}")])
    return ["<h2>Rate by group</h2>", figure(chart, caption)]


def _against_prior(diagnosis: dict[str, Any]) -> list[str]:
    if "prior" not in diagnosis:
        return []
    found = diagnosis["prior"]
    bits = found["test"] == "proportions"
    effect = "difference in the share of ones" if bits else "gap of the distribution functions"
    p_value = f"MMD&sup2; could be chance, {found['permutations']} permutations"
    rows = [
        _row("MMD&sup2;", number(found["mmd_squared"]), "Near 0, below it too."),
        _row(p_value, f"p = {found['p_value']:.3f}", "Not small: nothing shows that q(z) is not p(z)."),
        _row(f"largest {effect}", number(found["largest_effect"]), "Near 0."),
        _row(f"mean {effect}", number(found["mean_effect"]), "Near 0."),
        _row(
            "numbers of z that differ (Holm, 5 %)",
            f"{found['differing']:,} of {found['numbers']:,}",
            "Few; each has its own distribution in q(z) and p(z).",
        ),
    ]
    parts = ["<h2>Is q(z) the prior?</h2>"]
    if diagnosis["mixed_membership"]:
        mixed = diagnosis["mixed_membership"]
        kl = _with_error(mixed["marginal_kl"], mixed["marginal_kl_error"])
        rows.append(_row("mixed membership: distance of the weights", number(mixed["distance"]), "0; at most 0.693."))
        rows.append(_row("mixed membership: KL(q(z) || p(z))", kl, "Near 0."))
    head = '<tr><th>figure</th><th class="figure">value</th><th>what is good</th></tr>'
    parts.append(f"<table>{head}{''.join(rows)}</table>")
    return [*parts, _weights(diagnosis["mixed_membership"])] if diagnosis["mixed_membership"] else parts


def _weights(mixed: dict[str, Any]) -> str:
    """The weights of both groups side by side."""
    pairs = list(zip(mixed["prior_weights"], mixed["posterior_weights"], strict=True))
    step, top = (WIDTH - LEFT - RIGHT) / len(pairs), max(max(pair) for pair in pairs)
    shapes = []
    for place, pair in enumerate(pairs):
        for side, (style, value) in enumerate(zip(("theirs", "ours"), pair, strict=True)):
            x, height = LEFT + step * (place + 0.1 + 0.4 * side), 100 * value / top
            shapes.append(
                f'<rect class="{style}" x="{x:.1f}" y="{104 - height:.1f}" width="{0.38 * step:.1f}" '
                f'height="{height:.1f}"><title>{value:.3f}</title></rect>'
            )
    shapes.append(f'<text class="soft small right" x="{LEFT - 6}" y="14">{top:.2f}</text>')
    chart = drawing("Weights of the shared components in p(z) and in q(z)", 106, shapes)
    keys = legend([("theirs", "p(z)"), ("ours", "q(z)")])
    return figure(chart + keys, "Weights of components that both share. Good: pairs of the same height.")


def _components(components: list[dict[str, Any]] | None) -> list[str]:
    if not components:
        return []
    shown = components[:COMPONENTS_SHOWN]
    worded = any(row["words"] for row in shown)
    rows = [
        f"<tr><td>{row['component']}</td>{cell(row['share'])}"
        + (f'<td class="good">{escape(", ".join(row["words"]))}</td></tr>' if worded else "</tr>")
        for row in shown
    ]
    words = "<th>words it raises most</th>" if worded else ""
    table = f'<table><tr><th>component</th><th class="figure">share</th>{words}</tr>{"".join(rows)}</table>'
    used = sum(row["share"] > 0.1 / len(components) for row in components)
    said = f"{used} of {len(components)} components have a tenth of an equal share or more. Good: most of them"
    said += ", with words that go together." if worded else "."
    return ["<h2>Components of the prior</h2>", f"<p>{said}</p>", table]


def _probe(found: dict[str, Any] | None) -> list[str]:
    """Accuracy by number of labels."""
    if not found:
        return []
    names = {"means": "posterior means", "bits": "bits", "tfidf": "TF-IDF by LSI"}
    counts = [row["labelled"] for row in found["accuracy"]["means"]]
    head = "".join(f'<th class="figure">{count:,} labels</th>' for count in counts)
    rows = []
    for key, rates in found["accuracy"].items():
        cells = "".join(f'<td class="figure">{_percent(rate["mean"], rate["sd"])}</td>' for rate in rates)
        rows.append(f"<tr><td>{names[key]}, {found['dimensions'][key]:,} numbers</td>{cells}</tr>")
    said = (
        f"Share of other documents, of {found['documents']:,} with one of {found['classes']:,} labels, that a linear "
        f"classifier finds; mean and standard deviation of {found['draws']} draws. Good: above TF-IDF, most of all "
        f"with few labels. The most frequent label alone: {100 * found['most_frequent']:.1f} %."
    )
    table = f"<table><tr><th>features</th>{head}</tr>{''.join(rows)}</table>"
    return ["<h2>Labels from few examples</h2>", f"<p>{said}</p>", table]


def _percent(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f} &plusmn; {100 * sd:.1f} %"


def _row(name: str, value: str, good: str) -> str:
    return f'<tr><td>{name}</td><td class="figure">{value}</td><td class="good">{escape(good)}</td></tr>'


def _with_error(value: float, error: float | None) -> str:
    return number(value) if error is None else f"{number(value)} &plusmn; {error:.2g}"


def _range(found: dict[str, float | None] | None) -> str:
    """The bracket, or the exact value where it is known."""
    if found is None:
        return "-"
    if found["exact"] is not None:
        return f"{number(found['exact'])} (exact)"
    return f"{number(found['lower'])} to {number(found['upper'])}"

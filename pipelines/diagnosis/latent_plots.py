"""Plots of a latent space: its two main directions, and how single units lie to the prior. N documents, U units."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.charts import WIDTH, drawing, figure, scatter, steps
from vae_core.diagnostics.two_sample import is_binary

HISTOGRAMS, BINS = 8, 24
DRAWN = 2000
"""Documents that a plot shows at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """What is drawn of N documents: labels, posterior means (N, U), and a draw of q(z) and of p(z) for each, (N, W)."""

    labels: list[str]
    means: Tensor
    posterior_draws: Tensor
    prior_draws: Tensor


def latent_space(plots: Space) -> list[str]:
    """The section of a page: principal components of the posterior means, and histograms of single units."""
    points, shares = _principal(plots.means)
    names = tuple(f"component {place + 1}, {100 * share:.0f} % of variance" for place, share in enumerate(shares))
    chosen = torch.linspace(0, len(points) - 1, min(DRAWN, len(points))).long().tolist()
    dots = [(float(points[row, 0]), float(points[row, 1])) for row in chosen]
    chart = scatter("Posterior means", dots, [plots.labels[row] for row in chosen], (names[0], names[1]))
    caption = "Posterior means on their first two principal components. Good: one cloud that is spread, where labels "
    caption += "gather in regions; a single point or a thin line means that little is told."
    return ["<h2>Latent space</h2>", figure(chart, caption), *_histograms(plots)]


def _principal(means_NU: Tensor) -> tuple[Tensor, list[float]]:
    """Coordinates on the two directions of most variance, (N, 2), and the shares of variance they have."""
    centred = means_NU.double() - means_NU.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    directions, variances = directions.flip(1)[:, :2], variances.flip(0)[:2]
    # An eigenvector's sign is arbitrary: the largest entry is made positive, so that pages are the same.
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    points, shares = centred @ (directions * signs), variances / centred.square().sum().clamp(min=1e-300)
    if points.shape[1] == 1:
        points, shares = torch.cat([points, torch.zeros_like(points)], dim=1), torch.cat([shares, shares.new_zeros(1)])
    return points, shares.clamp(min=0).tolist()


def _histograms(plots: Space) -> list[str]:
    """Small ones of the units whose posterior means vary most."""
    means, drawn, prior = plots.means, plots.posterior_draws, plots.prior_draws
    units = means.var(dim=0).argsort(descending=True, stable=True)[:HISTOGRAMS].tolist()
    bits = is_binary(drawn)
    width, height = (WIDTH - 3 * 16) / 4, 120
    shapes = []
    for place, unit in enumerate(units):
        left, base = (place % 4) * (width + 16), (place // 4) * (height + 40) + height
        name = f"{'bit' if bits else 'dimension'} {unit}"
        shapes.append(f'<text class="small" x="{left:g}" y="{base - height + 10}">{name}</text>')
        box = (left, width, float(base), height - 22.0)
        shapes += _bit(means[:, unit], prior[:, unit], *box) if bits else _real(means, drawn, prior, unit, *box)
    said = f"Histograms of {len(units)} units"
    chart = drawing(said, (1 + (len(units) - 1) // 4) * (height + 40) - 14, shapes)
    if bits:
        caption = "The units that vary most: grey, how many documents have which chance of a one; the dashed line is "
        caption += "the prior's chance. Good: mass at both ends, in the prior's proportion."
        return [figure(chart, caption)]
    caption = "The units that vary most: grey, posterior means; line, draws of q(z); dashed, draws of the prior. "
    caption += "Good: the two lines agree, and the grey is nearly as wide."
    return [figure(chart, caption)]


def _bit(means_N: Tensor, prior_N: Tensor, left: float, width: float, base: float, height: float) -> list[str]:
    counts = torch.histc(means_N.double().clamp(0, 1), BINS, 0, 1)
    at = left + width * float(prior_N.double().mean())
    line = f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{base - height:.1f}" y2="{base:.1f}"/>'
    return [*_filled(counts, left, width, base, height, float(counts.max())), line, *_ends(0, 1, left, width, base)]


def _real(
    means: Tensor, drawn: Tensor, prior: Tensor, unit: int, left: float, width: float, base: float, height: float
) -> list[str]:
    columns_ = [sample[:, unit].double() for sample in (means, drawn, prior)]
    together = torch.cat(columns_)
    low, high = (float(torch.quantile(together, share)) for share in (0.002, 0.998))
    high = high if high > low else low + 1
    counts = [torch.histc(values.clamp(low, high), BINS, low, high) for values in columns_]
    top = float(torch.stack(counts[1:]).max())
    filled = _filled(counts[0].clamp(max=top), left, width, base, height, top)
    lines = [
        f'<path class="{style}" d="{steps(values.tolist(), left, width, base, height, top)}"/>'
        for style, values in (("ours", counts[1]), ("prior", counts[2]))
    ]
    return [*filled, *lines, *_ends(low, high, left, width, base)]


def _filled(counts: Tensor, left: float, width: float, base: float, height: float, top: float) -> list[str]:
    path = steps(counts.tolist(), left, width, base, height, max(1.0, top))
    return [f'<path class="pale" style="fill: var(--theirs)" d="{path}"/>']


def _ends(low: float, high: float, left: float, width: float, base: float) -> list[str]:
    return [
        f'<line class="axis" x1="{left:.1f}" x2="{left + width:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>',
        f'<text class="soft small" x="{left:.1f}" y="{base + 13:.1f}">{low:.2g}</text>',
        f'<text class="soft small right" x="{left + width:.1f}" y="{base + 13:.1f}">{high:.2g}</text>',
    ]

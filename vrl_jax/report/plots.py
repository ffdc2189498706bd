"""Curves and bars as inline SVG that takes its colours from the page.

Matplotlib draws with placeholder colours, which become CSS variables: one figure
serves the light and the dark theme. Nothing here touches pyplot or global settings
beyond the call.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from vrl_jax.report.reading import Series, smooth

INK, MUTED, GRID = "#010101", "#020202", "#030303"
CURVES = TRAINING, REWARD, SUPERVISED = "#040404", "#050505", "#060606"
HELD_OUT = "#070707"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    TRAINING: "--blue",
    REWARD: "--violet",
    SUPERVISED: "--teal",
    HELD_OUT: "--accent",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": MUTED,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


class Point(NamedTuple):
    """A held-out evaluation: accuracy with its 95 % interval, at a step."""

    step: float
    accuracy: float
    low: float
    high: float
    shuffled: float


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share observed on `count` trials; itself for count 0.

    A mean outside of [0, 1], a reward's, is no share and has none.

    (p + z^2/2n -+ z sqrt(p (1-p) / n + z^2/4n^2)) / (1 + z^2/n), z = 1.96.
    Wilson 1927, https://www.jstor.org/stable/2276774.
    """
    if not count or not 0 <= share <= 1:
        return share, share
    z = 1.96
    centre = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return tuple((centre + side) / (1 + z**2 / count) for side in (-half, half))


def learning_curve(
    training: Sequence[tuple[str, Series]], points: Sequence[Point]
) -> Markup:
    """At most three training curves, raw and smoothed, and held-out evaluations."""
    assert len(training) <= len(CURVES)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        axes = figure.add_subplot()
        for (label, curve), colour in zip(training, CURVES, strict=False):
            _draw_curve(axes, curve, colour, label)
        if points:
            _draw_points(axes, points)
        if any((curve.steps < 0).any() for _, curve in training):
            axes.axvline(0, color=MUTED, linewidth=0.8, dashes=(3, 3))
            _caption(axes, -5, "right", "← supervised")
            _caption(axes, 5, "left", "reinforcement learning →")
        values = [curve.values for _, curve in training]
        values.append(np.array([[p.low, p.high, p.shuffled] for p in points]).ravel())
        seen = np.concatenate(values) if values else np.array([])
        if np.all((seen >= 0) & (seen <= 1) | np.isnan(seen)):
            axes.set_ylim(-0.02, 1.1)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("step")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)
        return _svg(figure, "Learning curve")


def small_curve(name: str, curve: Series, *, top: float | None = None) -> Markup:
    """One metric, raw and smoothed; what lies above `top` is cut."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.2, 1.45))
        # Room for -2.5e-05; to measure what the texts need takes as long again.
        axes = figure.add_axes((0.22, 0.17, 0.75, 0.76))
        _draw_curve(axes, curve, TRAINING, None)
        if top is not None:
            axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
        return _svg(figure, name)


def bars(rows: Sequence[tuple[str, float, str]]) -> Markup:
    """Horizontal bars from (label, value, what to write after the bar)."""
    labels, values, notes = zip(*rows, strict=True)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 0.35 + 0.48 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.barh(labels, values, color=HELD_OUT, height=0.6)
        axes.bar_label(drawn, notes, padding=6, color=INK)
        axes.set_xlim(0, max(*values, 1e-12) * 1.35)
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_xticks([])
        return _svg(figure, "Visual dependency by kind of token")


def _draw_curve(axes: Axes, curve: Series, colour: str, label: str | None) -> None:
    axes.plot(*curve, color=colour, linewidth=0.8, alpha=0.35)
    smoothed = smooth(curve.values, max(1, len(curve.values) // 12))
    # A lone point has no line to show it.
    marker = "o" if np.isfinite(curve.values).sum() == 1 else None
    axes.plot(
        curve.steps, smoothed, color=colour, linewidth=1.8, label=label, marker=marker
    )


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    steps, accuracy, low, high, shuffled = np.array(points).T
    error = np.maximum([accuracy - low, high - accuracy], 0)
    axes.errorbar(
        steps,
        accuracy,
        error,
        fmt="o",
        color=HELD_OUT,
        markersize=7,
        capsize=3,
        label="held-out accuracy, with 95% interval",
        zorder=4,
    )
    if np.isfinite(shuffled).any():
        axes.plot(
            steps,
            shuffled,
            linestyle="none",
            marker="D",
            markersize=6,
            markerfacecolor="none",
            color=INK,
            label="held-out accuracy with shuffled pictures",
            zorder=4,
            clip_on=False,
        )
    for step, value in zip(steps, accuracy, strict=True):
        axes.annotate(
            f"{value:.0%}",
            (step, value),
            xytext=(-9, 5),
            textcoords="offset points",
            ha="right",
            color=INK,
            fontweight="bold",
        )


def _caption(axes: Axes, offset: float, align: str, text: str) -> None:
    axes.annotate(
        text,
        (0, 1),
        xycoords=("data", "axes fraction"),
        xytext=(offset, -4),
        textcoords="offset points",
        ha=align,
        va="top",
        fontsize=8,
    )


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an <svg> element, the same bytes for the same data."""
    buffer = io.StringIO()
    # The salt keeps the ids of clip paths apart on one page, and reproducible.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # Text keeps matplotlib's size and takes the page's font.
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    named = Markup('<svg role="img" aria-label="{}"').format(label)
    return Markup(svg.replace("<svg", named, 1))

"""The report's figures, as SVG fragments that a page can inline.

Enters: a learning curve, scores, per-query differences. Leaves: one `<svg>` string each. Colours are CSS
variables and text inherits the page's font, so that one file is readable on dark and on light screens;
nothing is fetched.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipelines.errors import PipelineError

__all__ = ["gain_plot", "learning_curve_plot", "score_plot"]

_PAINT = {
    "#00000a": "currentColor",
    "#00000b": "var(--grid)",
    "#00000c": "var(--accent)",
    "#00000d": "var(--second)",
    "#00000e": "var(--bad)",
}
"""Colours that matplotlib is given, and what each becomes in the page."""
_INK, _GRID, _ACCENT, _SECOND, _BAD = _PAINT

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.8,
}

_WIDTH = 9.2
"""Inches. Margins are fixed, in inches too: a layout engine would draw every figure several times."""

Points = Sequence[Mapping[str, float]]


def learning_curve_plot(points: Points) -> str | None:
    """Loss over steps: one panel for the total, one for each term where there are several.

    Args:
        points: per logged step `step`, `loss` and, for each term, `loss.<term>`.

    Returns:
        An `<svg>`, or None if there are no points.
    """
    if not points:
        return None
    terms = sorted({key for point in points for key in point if key.startswith("loss.")})
    series = ["loss", *(terms if len(terms) > 1 else [])]
    with mpl.rc_context(_STYLE):
        figure, axes = _row("learning", len(series))
        for ax, key in zip(axes, series, strict=True):
            steps = np.array([point["step"] for point in points if key in point], dtype=np.float64)
            values = _finite(key, [point[key] for point in points if key in point])
            ax.plot(steps, values, color=_ACCENT, alpha=0.3, linewidth=1.0)
            ax.plot(steps, _running_mean(values), color=_ACCENT)
            ax.set_title("weighted sum" if key == "loss" else key.removeprefix("loss."))
            ax.set_xlabel("step")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.margins(x=0.02)
        axes[0].set_ylabel("loss")
        return _svg(figure, "learning")


def score_plot(teacher_scores: NDArray[np.floating], student_scores: NDArray[np.floating]) -> str | None:
    """Histograms of teacher logits and of the student's scores, each on its own scale.

    Args:
        teacher_scores: raw teacher logits of any shape.
        student_scores: student similarities of any shape; need not be of the same pairs.

    Returns:
        An `<svg>`, or None if both are empty.
    """
    panels = [
        (name, _finite(name, scores), paint)
        for name, scores, paint in (
            ("teacher logits", teacher_scores, _SECOND),
            ("student scores", student_scores, _ACCENT),
        )
        if np.size(scores)
    ]
    if not panels:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _row("scores", len(panels))
        for ax, (name, values, paint) in zip(axes, panels, strict=True):
            counts, edges = np.histogram(values, bins=min(48, max(8, int(np.sqrt(values.size)))))
            ax.stairs(100 * counts / values.size, edges, fill=True, color=paint, alpha=0.75, linewidth=0)
            mean = f"{values.mean():.2f}".replace("-", "−")
            ax.set_title(f"{name} · n = {values.size:,} · mean {mean}, sd {values.std():.2f}")
            ax.set_xlabel("score")
        axes[0].set_ylabel("% of pairs")
        return _svg(figure, "scores")


def gain_plot(gains: Mapping[str, NDArray[np.floating]]) -> str | None:
    """Per-query differences in nDCG@10, sorted: what rose to the left, what fell to the right.

    Args:
        gains: title of the panel -> one difference per query, in [-1, 1].

    Returns:
        An `<svg>`, or None if there is nothing to compare.
    """
    if not gains:
        return None
    with mpl.rc_context(_STYLE):
        figure, axes = _row("gain", len(gains))
        for ax, (title, differences) in zip(axes, gains.items(), strict=True):
            values = np.sort(_finite(title, differences))[::-1]
            edges = np.arange(values.size + 1)
            ax.stairs(values.clip(min=0), edges, fill=True, color=_ACCENT, linewidth=0)
            ax.stairs(values.clip(max=0), edges, fill=True, color=_BAD, linewidth=0)
            ax.axhline(0, color=_INK, linewidth=0.8)
            ax.set_title(title)
            ax.set_xlabel("query, best gain first")
            ax.set_ylim(-1.03, 1.03)
            ax.set_xlim(0, values.size)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes[0].set_ylabel("difference in nDCG@10")
        return _svg(figure, "gain")


def _row(salt: str, panels: int) -> tuple[Figure, list[Axes]]:
    mpl.rcParams["svg.hashsalt"] = salt  # ids must be stable, and differ between figures of one page
    columns = min(panels, 3)
    rows = -(-panels // columns)
    height = 2.9 * rows
    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasSVG(figure)
    figure.subplots_adjust(
        left=0.72 / _WIDTH, right=1 - 0.1 / _WIDTH, bottom=0.5 / height, top=1 - 0.3 / height, wspace=0.26, hspace=0.4
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[panels:]:
        spare.remove()
    return figure, list(grid[:panels])


def _finite(name: str, values: object) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        broken = int((~np.isfinite(array)).sum())
        raise PipelineError(f"{name}: {broken} of {array.size} values to plot are NaN or infinite")
    return array


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred mean over about a fifteenth of the curve; the window shrinks at the ends."""
    half = values.size // 30
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(values.size) - half, 0)
    high = np.minimum(np.arange(values.size) + half + 1, values.size)
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(?<= id=")(?=[\w.]+_\d+")', f"{label}-", text)
    for stand_in, paint in _PAINT.items():
        text = text.replace(stand_in, paint)
    return text.strip()

"""Charts that compare the arms of a study; styled and written as SVG by `charts`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from spectral_jax.reporting.charts import ACCENT, INK, STYLE, WIDTH, svg

SMALL = 2.4, 1.7  # inches, of charts that stand in numbers


class Pen(NamedTuple):
    """How an arm is drawn: baselines in ink, controls dashed."""

    color: str
    line: str = "-"


def forest(
    rows: Sequence[Mapping[str, Any]], *, mark: float | None, xlabel: str, alt: str
) -> Markup:
    """A mean difference with its interval in each row, beside the line of no difference.

    Args:
      rows: with "label", "mean", "low", "high", and "pen".
      mark: a dotted line, such as the gain asked about.
      xlabel: with the unit.
      alt: for those who cannot see it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.55 + 0.21 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8)
        if mark is not None:
            axes.axvline(mark, color=ACCENT, linewidth=1, linestyle=":")
        for place, row in enumerate(rows):
            color, line = row["pen"]
            axes.plot([row["low"], row["high"]], [place, place], color=color, linestyle=line)
            axes.plot(row["mean"], place, "o", color=color, markersize=4.5)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(xlabel)
        axes.spines["left"].set_visible(False)
        return svg(figure, alt)


def lines(
    x: Sequence[float],
    by_arm: Mapping[str, Mapping[str, Any]],
    pens: Mapping[str, Pen],
    *,
    xlabel: str,
    alt: str,
    labels: Sequence[str] | None = None,
    percent: bool = False,
    size: tuple[float, float] = (WIDTH, 2.2),
) -> Markup:
    """A line for each arm, with its spread as bars.

    Args:
      x: places on the axis.
      by_arm: "mean" and "sd" at each place; None where undefined.
      pens: of the arms.
      xlabel: of the axis.
      alt: for those who cannot see it.
      labels: of the places; numbers if there are none.
      percent: whether the values are shares.
      size: in inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        axes = figure.add_subplot()
        step = np.ptp(x) / max(1, len(x) - 1)
        for number, (arm, curve) in enumerate(by_arm.items()):
            color, line = pens[arm]
            # bars beside, not upon, each other
            aside = step * 0.05 * (number - (len(by_arm) - 1) / 2)
            axes.errorbar(
                np.asarray(x, float) + aside,
                np.array(curve["mean"], float),
                np.nan_to_num(np.array(curve["sd"], float)),
                color=color,
                linestyle=line,
                linewidth=1.3,
                elinewidth=0.7,
                marker=".",
                markersize=4,
            )
        if labels is not None:
            axes.set_xticks(x, labels)
        elif all(isinstance(place, int) for place in x):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlabel(xlabel)
        return svg(figure, alt)


def reliability(
    by_arm: Mapping[str, Mapping[str, Any]], pens: Mapping[str, Pen], *, alt: str
) -> Markup:
    """Accuracy over confidence, a line for each arm; on the diagonal both agree.

    Args:
      by_arm: "confidence", "accuracy" and "count" in each bin.
      pens: of the arms.
      alt: for those who cannot see it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 2.6), layout="constrained")
        axes = figure.add_subplot()
        confident = []
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
        for arm, diagram in by_arm.items():
            color, line = pens[arm]
            count = np.array(diagram["count"], float)
            kept = count > 1e-4 * count.sum()  # a handful of pixels say nothing
            confidence = np.array(diagram["confidence"], float)[kept]
            confident.extend(confidence)
            accuracy = np.array(diagram["accuracy"], float)[kept]
            axes.plot(confidence, accuracy, color=color, linestyle=line, marker=".", linewidth=1.3)
        axes.set_xlim(max(0, min(confident, default=0) - 0.03), 1.01)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        return svg(figure, alt)


def learning(
    by_arm: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    pens: Mapping[str, Pen],
    *,
    alt: str,
) -> Markup:
    """Scores over steps: a thin line for each seed of an arm, and their mean at shared steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 2.2), layout="constrained")
        axes = figure.add_subplot()
        for arm, seeds in by_arm.items():
            color, line = pens[arm]
            at_step: dict[float, list[float]] = {}
            for steps, values in seeds:
                axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.6)
                for step, value in zip(steps, values, strict=True):
                    at_step.setdefault(step, []).append(value)
            shared = sorted(step for step, values in at_step.items() if len(values) == len(seeds))
            means = [float(np.mean(at_step[step])) for step in shared]
            axes.plot(shared, means, color=color, linestyle=line, linewidth=1.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("step")
        return svg(figure, alt)

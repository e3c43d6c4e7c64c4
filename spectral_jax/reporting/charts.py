"""Charts as inline SVG that takes its ink from the page, so that it fits a light and a dark one."""

import html
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter
from scipy import ndimage

# Colours that no chart uses otherwise; the page's own take their place in the SVG.
INK, ACCENT = "#010203", "#010204"
PAGE_COLORS = {INK: "currentColor", ACCENT: "var(--accent)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spectral_jax",
    "text.parse_math": False,
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
WIDTH = 3.5  # inches; the charts are as wide as a phone and stand side by side on a desk
MOST_POINTS = 400  # of one line, more than it has pixels
MOST_MARKERS = 1500  # of one class; more are drawn as one picture


def smooth(values: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Centred moving average over a twentieth of the curve."""
    return ndimage.uniform_filter1d(values, max(1, values.size // 20))


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    alt: str,
    noisy: bool = True,
    logarithmic: bool = False,
    beside: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> Markup:
    """A curve over training steps; of a noisy one the smoothed course stands over the raw one.

    Another one, of few steps, may stand `beside` it in ink.
    """
    x, y = np.asarray(steps), np.asarray(values, float)
    thin = slice(None, None, -(-x.size // MOST_POINTS))
    with matplotlib.rc_context(STYLE):
        figure, axes = _step_axes(logarithmic)
        if noisy:
            axes.plot(x[thin], y[thin], color=ACCENT, alpha=0.35, linewidth=0.7)
            y = smooth(y)
        axes.plot(x[thin], y[thin], color=ACCENT, linewidth=1.6)
        if len(beside[0]):
            axes.plot(*beside, color=INK, linewidth=1.2, marker=".", markersize=5)
        return svg(figure, alt)


def curves_by_class(
    steps: Sequence[float],
    mean: Sequence[float],
    by_class: Mapping[str, tuple[Sequence[float], str]],
    *,
    alt: str,
) -> Markup:
    """A mean over steps, its best value marked, and a thinner line in its colour for each class."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _step_axes()
        for values, color in by_class.values():
            axes.plot(steps, values, color=color, linewidth=1)
        axes.plot(steps, mean, color=INK, linewidth=1.8, marker=".", markersize=3)
        best = int(np.argmax(mean))
        axes.plot(steps[best], mean[best], "o", color=ACCENT, markersize=6)
        return svg(figure, alt)


def distribution(by_class: Mapping[str, tuple[Sequence[float], str]], *, alt: str) -> Markup:
    """All values in [0, 1] of each class as dots in its colour, over a box of their quartiles."""
    jitter = np.random.default_rng(0)
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.45 + 0.42 * len(by_class)), layout="constrained", dpi=200)
        axes = figure.add_subplot()
        for row, (values, color) in enumerate(by_class.values()):
            axes.scatter(
                values,
                row + jitter.uniform(-0.26, 0.26, len(values)),
                s=7,
                color=color,
                alpha=0.65,
                linewidths=0,
                rasterized=len(values) > MOST_MARKERS,
            )
        line = {"color": INK, "linewidth": 0.8}
        axes.boxplot(
            [values for values, _ in by_class.values()],
            positions=range(len(by_class)),
            orientation="horizontal",
            widths=0.66,
            showfliers=False,
            showcaps=False,
            boxprops=line,
            whiskerprops=line,
            medianprops=line | {"linewidth": 2},
        )
        axes.set_yticks(range(len(by_class)), list(by_class))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        lowest = min((min(values) for values, _ in by_class.values() if len(values)), default=0)
        axes.set_xlim(np.floor(lowest * 10 - 0.1) / 10 if lowest > 0.1 else -0.02, 1.01)
        axes.spines["left"].set_visible(False)
        return svg(figure, alt)


def _step_axes(logarithmic: bool = False):
    figure = Figure((WIDTH, 1.9), layout="constrained")
    axes = figure.add_subplot()
    if logarithmic:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("step")
    return figure, axes


def svg(figure: Figure, alt: str) -> Markup:
    """A figure drawn in `STYLE` as SVG in the ink of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    # The page has its own font, and a hundredth of a point is below what a screen shows.
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(
        r'( (?:d|x|y)=")([^"]*)', lambda m: m[1] + re.sub(r"(\.\d\d)\d+", r"\1", m[2]), svg
    )
    for color, of_page in PAGE_COLORS.items():
        svg = svg.replace(color, of_page)
    # Names inside a picture must not meet those of another on the page.
    prefix = f"chart-{zlib.crc32((alt + svg).encode()):x}-"
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}", svg)
    tag = f'<svg role="img" aria-label="{html.escape(alt)}" '
    return Markup(tag + svg[svg.index("<svg ") + len("<svg ") :])

"""What pictures are drawn on: matplotlib without a screen, one look, the same bytes each time."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlpost.errors import ConfigError


def pyplot() -> Any:
    """Return matplotlib's pyplot, set to draw into files.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise ConfigError("matplotlib is missing: pip install 'rlpost[plot]'") from None
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "rlpost"  # with it the same runs give the same file
    from matplotlib import pyplot as plt

    return plt


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a style a name: where curves coincide, the gaps of the later show the earlier."""
    from matplotlib import colormaps

    colormap = colormaps["tab10" if len(names) <= 10 else "tab20"]
    colours = colormap(range(colormap.N))
    dashes = itertools.cycle(("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2))))
    return {
        name: {"linestyle": dash, "color": colour}
        for name, dash, colour in zip(names, dashes, itertools.cycle(colours), strict=False)
    }


def frame(axis: Any, label: str, centre: float | None = 0.0) -> None:
    """Name the horizontal axis, and draw a grid and, unless null, a line at `centre`."""
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
    if centre is not None:
        axis.axvline(centre, color="black", linewidth=0.6)


def save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure as `stem.svg` and `stem.png`; return both paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(f".{suffix}") for suffix in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot().close(figure)
    return paths


def as_svg(figure: Any) -> str:
    """Return a figure as an SVG element, its letters as text."""
    plt, text = pyplot(), io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]

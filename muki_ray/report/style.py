"""How pictures look: colours, fonts, text that is safe to draw, and PNG bytes.

Knows Matplotlib's object interface only: no pyplot, no global state, so that pictures can be drawn in any
process and thread.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from functools import cache
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

# Okabe and Ito's palette: told apart with every common colour blindness
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#999999", "#222222"
# one hue, dark is more; readable in grey too. The second leaves white to "nothing"
SEQUENTIAL = colormaps["Blues"]
SEQUENTIAL_FROM_ONE = ListedColormap(SEQUENTIAL(np.linspace(0.22, 1.0, 256)))
DOTS_PER_INCH = 130
# scripts that DejaVu Sans lacks; used where they are installed
_FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
)


def short(text: str, most: int = 30) -> str:
    """One printable line of at most `most` characters; both ends stay, for they tell names apart."""
    clean = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    clean = " ".join(clean.split())
    if len(clean) <= most:
        return clean
    head = (most - 1) // 2
    return f"{clean[:head]}…{clean[len(clean) - (most - 1 - head) :]}"


def new_figure(width: float, height: float, square: bool = False) -> Figure:
    """An empty figure, sizes in inches; `square` for axes whose cells must be squares."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, compress=square)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, grid: Literal["x", "y"]) -> Axes:
    """Fewer lines: no box, a light grid along one axis, behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def to_png(figure: Figure) -> bytes:
    """PNG bytes of a figure."""
    families = _families()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(families)
        text.set_parse_math(False)  # a label such as "$x" is text, not a formula
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # a label in a script with no installed font shows as boxes here; the page has it as text
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # tight: nothing that a long label pushes over the edge is cut off
        figure.savefig(sink, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.12)
    return sink.getvalue()


@cache
def _families() -> list[str]:
    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in installed)]

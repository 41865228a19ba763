"""A report page: one self-contained HTML file of headings, sentences, tables and plots."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from zhllama.extras import is_installed
from zhllama.terminal import cell_text, warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body{font:16px/1.6 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;max-width:1000px;
margin:2em auto;padding:0 1em;color:#222}h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px
solid #ddd}table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;border-bottom:1px solid #e5e5e5;
text-align:right;vertical-align:top}td:first-child,th:first-child{text-align:left}table.text td,table.text th{
text-align:left;white-space:pre-wrap}svg{max-width:100%;height:auto}.token{border-radius:3px;padding:1px 2px;margin:0 1px}
.note{color:#666}
"""
# Neighbours differ, so that each token's end shows.
TOKEN_COLOURS = ("#cfe8ff", "#ffe2bf", "#d6f5d0", "#f6d4ee", "#fff3b0")
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)
LINE_STYLES = ("-", "--", ":")  # for more curves than colours
# Blue and orange stay apart for colour-blind readers and in grey print.
PALETTE = ("#1f6fb2", "#e07b00", "#2a9d5c", "#b0307a", "#666666", "#8c6d1f")
WITHOUT = "plots need the extra [report]: pip install 'zhllama[report]'"
Inputs = ParamSpec("Inputs")


class Page:
    """Collects parts in order; `write` makes the file."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """A section heading."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str, note: bool = False) -> None:
        """A paragraph of plain text; `note` greys it."""
        self.parts.append(f"<p{' class=note' if note else ''}>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]], text: bool = False) -> None:
        """A table; `text` keeps line breaks and aligns left."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell_text(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        self.parts.append(f"<table{' class=text' if text else ''}><tr>{head}</tr>{body}</table>")

    def segmentation(self, label: str, tokens: Sequence[str]) -> None:
        """One sentence with its tokens in alternating colours."""
        spans = "".join(
            f'<span class="token" style="background:{TOKEN_COLOURS[i % len(TOKEN_COLOURS)]}">{html.escape(token)}</span>'
            for i, token in enumerate(tokens)
        )
        self.parts.append(f"<p><b>{html.escape(label)}</b> ({len(tokens)} tokens)<br>{spans}</p>")

    def figure(self, figure: Figure | None) -> None:
        """A matplotlib figure as inline SVG; its text stays text. Without one, a note that says how to get it."""
        if figure is None:
            self.paragraph(f"No plot here: {WITHOUT}", note=True)
            return
        import matplotlib

        buffer = io.StringIO()
        with (
            # Text as text, with ids drawn from a fixed salt: the same figure gives the same bytes.
            matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zhllama"}),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has the characters
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        # An SVG inside HTML has neither an XML declaration nor a document type.
        svg = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
        self.parts.append(svg)

    def write(self, path: Path) -> None:
        """Write the page as one UTF-8 file."""
        path.write_text(
            f'<!doctype html><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{STYLE}</style>\n" + "\n".join(self.parts) + "\n",
            encoding="utf-8",
            errors="backslashreplace",  # for a path whose bytes are no UTF-8
        )


def write_image(figure: Figure | None, path: Path) -> None:
    """A figure as a PNG file; without one, a warning that says how to get it."""
    if figure is None:
        warn(f"{path}: left out, for {WITHOUT}")
        return
    figure.savefig(path, dpi=120)


def _where_installed(plot: Callable[Inputs, Figure]) -> Callable[Inputs, Figure | None]:
    """The plot, or None on a bare install: what it shows stands in the report's tables too."""

    @wraps(plot)
    def draw(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Figure | None:
        return plot(*args, **kwargs) if is_installed("matplotlib") else None

    return draw


@_where_installed
def line_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str, title: str
) -> Figure:
    """Curves by name, each (x values, y values), on one pair of axes."""
    figure, axes = _axes(title)
    for index, (name, (x, y)) in enumerate(curves.items()):
        colour = PALETTE[index % len(PALETTE)]
        # A new style once the colours are used up.
        style = LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]
        marker = "." if len(x) < 30 else None
        axes.plot(x, y, label=name, color=colour, linestyle=style, linewidth=1.8, marker=marker)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(curves) > 1:
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(curves) > len(PALETTE) else {}
        axes.legend(frameon=False, **beside)
    return figure


@_where_installed
def bar_plot(
    groups: Sequence[str], series: Mapping[str, Sequence[float | None]], y_label: str, title: str
) -> Figure:
    """Grouped bars with their values on top: one group per name, one colour per series; None leaves a gap."""
    figure, axes = _axes(title)
    width = 0.8 / max(len(series), 1)
    for index, (name, values) in enumerate(series.items()):
        # Side by side, the middle of them at the group's number.
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
        heights = [0.0 if value is None else value for value in values]
        bars = axes.bar(places, heights, width * 0.92, label=name, color=PALETTE[index % len(PALETTE)])
        labels = ["" if value is None else f"{value:.2f}" for value in values]
        # Many bars are narrower than their figures.
        axes.bar_label(
            bars,
            labels,
            fontsize=8,
            padding=2,
            rotation=90 if len(series) > 3 or len(bars) * len(series) > 14 else 0,
        )
    axes.set_xticks(range(len(groups)), groups, fontsize=10 if sum(map(len, groups)) < 40 else 8)
    axes.margins(y=0.15)  # room for the figures
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@_where_installed
def stacked_plot(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    limits: Mapping[str, float],
    y_label: str,
    title: str,
) -> Figure:
    """One bar per name, a layer per series, its sum on top; a dashed line for each limit that is near the bars."""
    import matplotlib

    figure, axes = _axes(title)
    colours = matplotlib.color_sequences["tab20"]
    heights = [0.0] * len(groups)
    for colour, (name, values) in zip(colours, series.items(), strict=False):
        bars = axes.bar(range(len(groups)), values, 0.6, bottom=heights, label=name, color=colour)
        heights = [below + value for below, value in zip(heights, values, strict=True)]
    axes.bar_label(bars, [f"{height:.1f}" for height in heights], fontsize=8, padding=2)
    for name, limit in limits.items():
        # A limit far above would press the bars to the ground.
        if limit <= 1.5 * max(heights):
            axes.axhline(limit, color="#666666", linewidth=1, linestyle="--")
            axes.text(len(groups) - 0.5, limit, name, fontsize=8, va="bottom", ha="right", color="#666666")
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(y_label)
    handles, labels = axes.get_legend_handles_labels()
    # From the top down, as the layers lie.
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _axes(title: str) -> tuple[Figure, Any]:
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    installed = set(font_manager.get_font_names())
    # matplotlib asks the fonts one after the other for each character; a missing one would be warned of.
    fonts = ["DejaVu Sans", *(name for name in CHINESE_FONTS if name in installed), "sans-serif"]
    matplotlib.rcParams |= {"font.family": fonts, "text.parse_math": False}  # a dollar is a dollar
    # Without pyplot: that keeps figures alive, and asks for a screen.
    figure = NewFigure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    return figure, axes

"""Report pages: escaped, self-contained, with plots that carry their values."""

import html
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import font_manager

from zhllama import page as page_module
from zhllama.page import CHINESE_FONTS, PALETTE, WITHOUT, Page, bar_plot, line_plot, stacked_plot, write_image

SVG = "{http://www.w3.org/2000/svg}"


def written(page: Page, folder: Path) -> str:
    page.write(folder / "report.html")
    return (folder / "report.html").read_bytes().decode("utf-8")


def plot_of(figure: object) -> ElementTree.Element:
    """The SVG that a page gets, parsed; no warning may escape to the terminal."""
    page = Page("plot")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page.figure(figure)  # type: ignore[arg-type]
    return ElementTree.fromstring(page.parts[-1])


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def test_a_page_is_one_utf8_file_with_its_parts_in_order(tmp_path: Path) -> None:
    page = Page("报告")
    page.heading("一")
    page.paragraph("甲")
    page.paragraph("乙", note=True)
    html = written(page, tmp_path)
    head = '<!doctype html><meta charset="utf-8"><title>报告</title><style>'
    assert html.startswith(head)
    assert html.endswith("</style>\n<h1>报告</h1>\n<h2>一</h2>\n<p>甲</p>\n<p class=note>乙</p>\n")


def test_all_text_is_escaped(tmp_path: Path) -> None:
    text = "<s>&\"'"
    page = Page(text)
    page.heading(text)
    page.paragraph(text)
    page.table([text], [[text]])
    page.segmentation(text, [text])
    html = written(page, tmp_path)
    assert "<s>" not in html
    assert html.count("&lt;s&gt;&amp;&quot;&#x27;") == 8  # the title twice


def test_a_table_shows_values_as_the_terminal_does() -> None:
    page = Page("t")
    page.table(["text", "bytes"], [["甲", 1234567], ["乙", 1.23456], ["丙", None]])
    assert page.parts[-1] == (
        "<table><tr><th>text</th><th>bytes</th></tr><tr><td>甲</td><td>1,234,567</td></tr>"
        "<tr><td>乙</td><td>1.235</td></tr><tr><td>丙</td><td>-</td></tr></table>"
    )


def test_a_text_table_keeps_its_line_breaks() -> None:
    page = Page("t")
    page.table(["答"], [["一\n二"]], text=True)
    assert page.parts[-1] == "<table class=text><tr><th>答</th></tr><tr><td>一\n二</td></tr></table>"


@pytest.mark.parametrize("table", ["", "table.text "])
def test_headers_align_as_their_cells(table: str, tmp_path: Path) -> None:
    style = re.search(r"<style>(.*)</style>", written(Page("t"), tmp_path), re.DOTALL)
    assert style is not None
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style[1].replace("\n", ""))
    aligned = {
        selector: re.findall(r"text-align:(\w+)", body)
        for selectors, body in rules
        for selector in selectors.split(",")
        if "text-align" in body
    }
    assert aligned[f"{table}th"] == aligned[f"{table}td"] == (["left"] if table else ["right"])


def test_tokens_alternate_in_colour() -> None:
    page = Page("t")
    page.segmentation("base", ["中", "国", " <"])
    part = page.parts[-1]
    assert part.startswith("<p><b>base</b> (3 tokens)<br>")
    spans = re.findall(r'<span class="token" style="background:(#\w+)">([^<]*)</span>', part)
    assert [text for _, text in spans] == ["中", "国", " &lt;"]
    assert len({colour for colour, _ in spans}) == 3


def test_bars_carry_their_values_and_names() -> None:
    figure = bar_plot(
        ["news", "reviews"], {"base": [1.25, None], "ours": [0.5, 2.75]}, "bits per byte", "Lower is better"
    )
    shown = texts(plot_of(figure))
    assert {"news", "reviews", "base", "ours", "bits per byte", "Lower is better"} <= set(shown)
    bars = figure.axes[0].containers
    assert [[bar.get_height() for bar in group] for group in bars] == [[1.25, 0.0], [0.5, 2.75]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.25", "", "0.50", "2.75"]
    assert {"1.25", "0.50", "2.75"} <= set(shown)


def test_bars_of_a_group_stand_side_by_side() -> None:
    figure = bar_plot(["a", "b"], {"x": [1.0, 1.0], "y": [1.0, 1.0]}, "", "")
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in figure.axes[0].containers]
    assert centres == [pytest.approx([-0.2, 0.8]), pytest.approx([0.2, 1.2])]


def test_lines_carry_their_values_and_names() -> None:
    figure = line_plot(
        {"base": ([1, 2], [3.0, 2.5]), "ours": ([1, 2], [2.0, 1.5])}, "tokens", "bits per byte", "Curves"
    )
    assert {"base", "ours", "tokens", "bits per byte", "Curves"} <= set(texts(plot_of(figure)))
    lines = figure.axes[0].lines
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in lines] == [
        ([1, 2], [3.0, 2.5]),
        ([1, 2], [2.0, 1.5]),
    ]
    assert [line.get_color() for line in lines] == list(PALETTE[:2])


def test_one_series_needs_no_legend() -> None:
    assert line_plot({"training": ([1], [2.0])}, "x", "y", "t").axes[0].get_legend() is None
    assert bar_plot(["a"], {"training": [2.0]}, "y", "t").axes[0].get_legend() is None


def test_more_curves_than_colours_are_all_drawn_and_told_apart() -> None:
    curves = {str(index): ([1.0], [float(index)]) for index in range(10)}
    lines = line_plot(curves, "x", "y", "t").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 10


@pytest.mark.parametrize("installed", [True, False])
def test_chinese_labels_stay_text_with_or_without_a_font(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setattr(font_manager, "get_font_names", lambda: ["DejaVu Sans"])
    svg = plot_of(bar_plot(["新闻"], {"扩展前": [1.0], "扩展后": [2.0]}, "每字节比特", "越低越好"))
    assert {"新闻", "扩展前", "扩展后", "每字节比特", "越低越好"} <= set(texts(svg))


def test_an_installed_chinese_font_draws_pictures(tmp_path: Path) -> None:
    if not set(CHINESE_FONTS) & set(font_manager.get_font_names()):
        pytest.skip("no Chinese font installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        line_plot({"甲": ([1], [2.0])}, "词", "损失", "曲线").savefig(tmp_path / "loss.png")


def test_markup_and_dollars_in_labels_are_text() -> None:
    label = "<b> & $x_1$ \\frac"
    svg = plot_of(line_plot({label: ([1], [2.0]), "b": ([1], [2.0])}, label, label, label))
    assert texts(svg).count(label) == 4


def test_the_same_figure_gives_the_same_bytes() -> None:
    parts = []
    for _ in range(2):
        page = Page("t")
        page.figure(line_plot({"a": ([1, 2], [2.0, 3.0])}, "x", "y", "t"))
        parts.append(page.parts[-1])
    assert parts[0] == parts[1]
    assert parts[0].startswith("<svg")


def test_a_bare_install_writes_pages_without_plots_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page_module, "is_installed", lambda name: name != "matplotlib")
    plots = [
        line_plot({"a": ([1, 2], [1, 2])}, "x", "y", "title"),
        bar_plot(["a"], {"b": [1.0]}, "y", "title"),
        stacked_plot(["a"], {"b": [1.0]}, {}, "y", "title"),
    ]
    assert plots == [None] * 3
    page = Page("plots")
    page.figure(None)
    assert written(page, tmp_path).count(f"<p class=note>No plot here: {html.escape(WITHOUT)}</p>") == 1
    write_image(None, tmp_path / "a.png")
    assert capsys.readouterr().err == f"zhllama: warning: {tmp_path / 'a.png'}: left out, for {WITHOUT}\n"
    assert not (tmp_path / "a.png").exists()


def test_an_image_is_written(tmp_path: Path) -> None:
    write_image(line_plot({"a": ([1, 2], [1, 2])}, "x", "y", "title"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

"""report.html of a corpus: what was kept, what was dropped and why, how long documents are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zhllama.corpus.tally import Tally
from zhllama.page import Page, bar_plot


def write_report(path: Path, source: str, result: dict[str, Any], tally: Tally) -> None:
    """One page: counts by reason, examples of each reason, a histogram of document lengths."""
    page = Page(f"Corpus from {Path(source).name}")
    page.paragraph(
        f"{result['documents']:,} of {result['read']:,} documents kept: {result['characters']:,} characters, "
        f"{result['bytes']:,} bytes, {result['han_share']:.1%} of the characters Chinese."
    )
    if lost := result["replacement_characters"]:
        page.paragraph(
            f"The input held {lost:,} replacement characters (U+FFFD): text lost before it came here."
        )
    page.heading("Kept and dropped")
    rows = [("kept", result["documents"]), *result["dropped"].items()]
    page.table(
        ["", "documents", "share"], [[name, count, f"{count / result['read']:.2%}"] for name, count in rows]
    )
    if result["skipped"]:
        page.heading("Not read")
        page.table(["what", "left out"], [[what, count] for what, count in result["skipped"].items()])
        page.table(["the first of them"], [[problem] for problem in tally.problems], text=True)
    if result["personal"]:
        page.heading("Personal data")
        page.paragraph("Found by kind, and never shown here.", note=True)
        page.table(["kind", "found"], [[kind, count] for kind, count in result["personal"].items()])
    if result["languages"]:
        page.heading("Languages")
        page.paragraph(
            "Documents that the rules before kept, by the language of most of their text.", note=True
        )
        page.table(["language", "documents"], [[*item] for item in result["languages"].items()])
    if result["removed"]:
        page.heading("Removed lines")
        page.table(["lines", "removed"], [[*item] for item in result["removed"].items()])
        for what in result["removed"]:
            page.table([what, "the first of them"], tally.examples[what], text=True)
    if result["contaminated"]:
        page.heading("Shared with evaluation files")
        page.paragraph("Dropped documents by the file they share 13 letters in a row with.", note=True)
        page.table(["evaluation file", "documents"], [[*item] for item in result["contaminated"].items()])
    if tally.clusters:
        page.heading("Near-duplicates")
        page.paragraph(
            "Documents that share most of their 5-character sequences, exact copies counted in. Of each cluster "
            "the one with the most letters was kept, of equals the earliest.",
            note=True,
        )
        sizes = sorted(tally.clusters.items(), key=lambda item: int(item[0]))
        page.table(["documents in a cluster", "clusters"], [[int(size), count] for size, count in sizes])
    page.heading("Lengths of kept documents")
    bins = sorted(map(int, tally.lengths))
    # Every length between the shortest and the longest has its bar, an empty one too.
    bins = list(range(bins[0], bins[-1] + 1))
    shares = [100 * tally.lengths[str(bits)] / result["documents"] for bits in bins]
    names = [_short(2**bits) for bits in bins]
    page.figure(
        bar_plot(names, {"documents": shares}, "% of documents", "Characters per document, fewer than")
    )
    page.heading("Examples of dropped documents")
    page.paragraph("The first of each reason, cut short; where each came from is file:line.", note=True)
    for reason in result["dropped"]:
        page.table([reason, "text"], tally.examples[reason], text=True)
    page.write(path)


def _short(number: int) -> str:
    return f"{number // 1024}K" if number >= 1024 else str(number)

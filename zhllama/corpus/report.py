"""report.html of a corpus: what was kept at each step, what was dropped and why, and what it consists of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from zhllama.corpus.contamination import REASON
from zhllama.corpus.duplicates import LISTS
from zhllama.corpus.measure import BINS, GRAMS, QUALITIES
from zhllama.corpus.tally import DocumentTally
from zhllama.page import Page, bar_plot

SOURCES, SEQUENCES = 20, 10  # shown
MOMENTS = ("before", "after")
CLUSTER_SIZES = (2, 3, 4, 5, 10, 20, 50, 100, 1000)  # the least of each group


def write_report(path: Path, source: str, result: dict[str, Any], tally: DocumentTally) -> None:
    """One page: steps, reasons with examples, duplicates, distributions, sources and kinds, frequent sequences."""
    page = Page(f"Corpus from {Path(source).name}")
    page.paragraph(
        f"{result['documents']:,} of {result['read']:,} documents kept: {result['characters']:,} characters, "
        f"{result['bytes']:,} bytes, {result['han_share']:.1%} of the characters Chinese."
    )
    if lost := result["replacement_characters"]:
        page.paragraph(
            f"The input held {lost:,} replacement characters (U+FFFD): text lost before it came here."
        )
    if gone := result["invisible_characters"]:
        page.paragraph(
            f"{gone:,} invisible characters removed: marks of direction, soft hyphens, joiners and fillers that "
            "said nothing where they stood."
        )
    _steps(page, result, tally)
    _reasons(page, result, tally)
    _findings(page, result, tally)
    _clusters(page, tally)
    _distributions(page, tally)
    _origins(page, tally)
    _sequences(page, tally)
    page.heading("Examples of dropped documents")
    page.paragraph("The first of each reason, cut short; where each came from is file:line.", note=True)
    for reason in result["dropped"]:
        page.table([reason, "text"], tally.examples[reason], text=True)
    page.write(path)


def _steps(page: Page, result: dict[str, Any], tally: DocumentTally) -> None:
    page.heading("Step by step")
    page.paragraph(
        "What is left after each step. The rules also normalise and replace, which changes characters.",
        note=True,
    )
    documents, characters = tally.counts["documents judged"], tally.counts["characters judged"]
    # In the order of the passes; what a step before dropped is gone from the next.
    steps = [("read", result["read"], sum(tally.seen["before characters"].values()))]
    steps.append(("rules", documents, characters))
    for reason in (REASON, *LISTS):
        # A step that dropped nothing, or was not asked for, has no row.
        if tally.dropped[reason]:
            documents -= tally.dropped[reason]
            characters -= tally.dropped_characters[reason]
            steps.append(
                (f"without {reason}s" if reason in LISTS else f"not {reason}", documents, characters)
            )
    if tally.removed:
        steps.append(("without repeated lines", result["documents"], result["characters"]))
    whole = steps[0][1:]
    rows = [
        [name, documents, _share(documents, whole[0]), characters, _share(characters, whole[1])]
        for name, documents, characters in steps
    ]
    page.table(["after", "documents", "share", "characters", "share"], rows)


def _reasons(page: Page, result: dict[str, Any], tally: DocumentTally) -> None:
    page.heading("Kept and dropped")
    rows = [["kept", result["documents"], _share(result["documents"], result["read"]), result["characters"]]]
    for reason, count in result["dropped"].items():
        rows.append([reason, count, _share(count, result["read"]), tally.dropped_characters[reason]])
    page.table(["", "documents", "share", "characters"], rows)


def _findings(page: Page, result: dict[str, Any], tally: DocumentTally) -> None:
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


def _clusters(page: Page, tally: DocumentTally) -> None:
    if not tally.clusters:
        return
    page.heading("Near-duplicates")
    page.paragraph(
        "Documents that share most of their 5-character sequences, exact copies counted in. Of each cluster "
        "the one with the most letters was kept, of equals the earliest.",
        note=True,
    )
    clusters, documents = Counter[int](), Counter[int]()
    for size, count in tally.clusters.items():
        group = max(least for least in CLUSTER_SIZES if least <= int(size))
        clusters[group] += count
        documents[group] += count * int(size)
    rows = [[_from_to(group), clusters[group], documents[group]] for group in sorted(clusters)]
    page.table(["documents in a cluster", "clusters", "documents in them"], rows)


def _distributions(page: Page, tally: DocumentTally) -> None:
    page.heading("Lengths and qualities")
    lengths = {moment: tally.seen[f"{moment} lengths"] for moment in MOMENTS}
    found = sorted({int(bits) for counter in lengths.values() for bits in counter})
    # Every length between the shortest and the longest has its bar, an empty one too.
    bins = [str(bits) for bits in range(found[0], found[-1] + 1)]
    # A length's bits say the power of two that it is below.
    names = [_short(2 ** int(bits)) for bits in bins]
    page.figure(_before_and_after(names, bins, lengths, "Characters per document, fewer than"))
    page.paragraph(
        "Shares of characters without white space: Chinese among the letters; digits, punctuation and symbols; "
        "sequences of 10 characters that occurred before in the document.",
        note=True,
    )
    tenths = [str(number) for number in range(BINS)]
    names = [f"{100 * number // BINS}-{100 * (number + 1) // BINS}%" for number in range(BINS)]
    for quality in QUALITIES:
        counts = {moment: tally.seen[f"{moment} {quality}"] for moment in MOMENTS}
        title = f"{quality[0].upper()}{quality[1:]} per document"
        page.figure(_before_and_after(names, tenths, counts, title))


def _before_and_after(names: list[str], bins: list[str], counts: dict[str, Counter[str]], title: str) -> Any:
    totals = {moment: max(counts[moment].total(), 1) for moment in MOMENTS}
    # Bars without a document have no figure.
    shares = {
        moment: [100 * counts[moment][bits] / totals[moment] or None for bits in bins] for moment in MOMENTS
    }
    return bar_plot(names, shares, "% of documents", title)


def _origins(page: Page, tally: DocumentTally) -> None:
    page.heading("Kinds and sources")
    page.paragraph(
        "A kind is the first folder of a document's file. Shares are of the characters kept.", note=True
    )
    before, after = (tally.seen[f"{moment} characters"] for moment in MOMENTS)
    whole = after.total()
    rows = [
        [
            kind,
            tally.seen["before documents"][kind],
            tally.seen["after documents"][kind],
            before[kind],
            after[kind],
            _share(after[kind], before[kind]),
            _share(after[kind], whole),
        ]
        # The largest first, of equals by name, so that reports of one corpus are the same bytes.
        for kind in sorted(before, key=lambda kind: (-after[kind], kind))
    ]
    header = ["kind", "documents read", "kept", "characters read", "kept", "kept of read", "share"]
    page.table(header, rows)
    before, after = (tally.seen[f"{moment} source characters"] for moment in MOMENTS)
    named = sorted(before, key=lambda source: (-after[source], source))
    rows = [
        [name, before[name], after[name], _share(after[name], before[name]), _share(after[name], whole)]
        for name in named[:SOURCES]
    ]
    if rest := named[SOURCES:]:
        read, left = sum(before[name] for name in rest), sum(after[name] for name in rest)
        rows.append([f"{len(rest):,} more", read, left, _share(left, read), _share(left, whole)])
    page.table(["source", "characters read", "kept", "kept of read", "share"], rows)


def _sequences(page: Page, tally: DocumentTally) -> None:
    sampled = {moment: tally.counts[f"{moment} sampled"] for moment in MOMENTS}
    # Without Chinese before or after there is nothing to divide by.
    if not all(sampled.values()):
        return
    page.heading("Frequent sequences of Chinese characters")
    page.paragraph(
        f"How often in 10,000 Chinese characters, counted in {sampled['before']:,} of them before and "
        f"{sampled['after']:,} after.",
        note=True,
    )
    for size in GRAMS:
        columns = []
        for moment in MOMENTS:
            counts = {gram: n for gram, n in tally.seen[f"{moment} grams"].items() if len(gram) == size}
            top = sorted(counts, key=lambda gram: (-counts[gram], gram))[:SEQUENCES]
            cells = [[gram, f"{10_000 * counts[gram] / sampled[moment]:.1f}"] for gram in top]
            columns.append(cells + [["", ""]] * (SEQUENCES - len(cells)))
        rows = [[*before, *after] for before, after in zip(*columns, strict=True) if before[0] or after[0]]
        page.table([f"{size} characters, before", "", "after", ""], rows)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _from_to(least: int) -> str:
    above = [size for size in CLUSTER_SIZES if size > least]
    if not above:
        return f"{least:,} or more"
    return str(least) if above[0] == least + 1 else f"{least} to {above[0] - 1}"


def _short(number: int) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)

"""The text of EPUB books and Word files: zip archives of XML, read as their formats say (EPUB 3.3, ECMA-376).

No library for either: python-docx edits files and gives paragraphs and tables apart, the kept ones for EPUB are AGPL.
"""

from __future__ import annotations

import posixpath
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile

from zhllama import decode
from zhllama.config import UserError

WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
# What Word leaves for older versions says the same again.
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
# HTML elements that begin a line; what they hold of these is a line of its own.
BLOCK = re.compile(
    "address|article|aside|blockquote|body|br|caption|center|div|[duo]l|d[dt]|fig(caption|ure)|footer|form|h[1-6r]|"
    "header|li|main|p|pre|section|table|tr"
)
# svg and math hold single words and formulas in pieces; nav repeats the titles of chapters.
LEFT_OUT = {"head", "script", "style", "nav", "svg", "math", "rt", "rp"}  # rt: how a character is read


def book(path: Path, progress: Callable[[int], None] | None) -> Iterator[str]:
    """The chapters of an EPUB, which are its XHTML files in reading order; a paragraph a line.

    Raises:
        UserError: not a whole EPUB, or one with encrypted chapters.
    """
    yield from _guarded(path, "EPUB", _chapters, progress)


def word_file(path: Path, progress: Callable[[int], None] | None) -> Iterator[str]:
    """The text of a .docx: a paragraph a line, those of tables too; without headers, footers, notes and deletions.

    Raises:
        UserError: not a whole .docx.
    """
    yield from _guarded(path, "Word file (.docx)", _word_text, progress)


def _guarded(
    path: Path,
    kind: str,
    texts: Callable[[Path, ZipFile], Iterator[tuple[float, str]]],
    progress: Callable[[int], None] | None,
) -> Iterator[str]:
    from lxml import etree

    try:
        with ZipFile(path) as archive:
            for share, text in texts(path, archive):
                yield text
                if progress:
                    progress(round(path.stat().st_size * share))
    # RuntimeError: zip's own encryption; NotImplementedError: a compression that Python does not know.
    except (BadZipFile, KeyError, EOFError, zlib.error, OSError, RuntimeError, etree.LxmlError) as problem:
        raise UserError(f"{path}: not a whole {kind} ({str(problem)[:80]}); copy it again") from problem


def _chapters(path: Path, archive: ZipFile) -> Iterator[tuple[float, str]]:
    from lxml import html

    named = _xml(path, archive, "META-INF/container.xml").find(".//{*}rootfile")
    if named is None:
        raise UserError(f"{path}: not a whole EPUB (no rootfile in META-INF/container.xml); copy it again")
    package = str(named.get("full-path"))
    root = _xml(path, archive, package)
    pages = {
        item.get("id"): posixpath.normpath(
            # Names in a package are URLs, relative to the package's own folder.
            posixpath.join(posixpath.dirname(package), unquote(item.get("href", "")))
        )
        for item in root.iterfind(".//{*}manifest/{*}item")
        # The manifest lists pictures, fonts and styles too.
        if "html" in item.get("media-type", "")
    }
    spine = [
        pages[item.get("idref")]
        for item in root.iterfind(".//{*}spine/{*}itemref")
        if item.get("idref") in pages
    ]
    # The spine is the order of reading; the archive's order is that of whoever packed it.
    closed = _encrypted(path, archive)
    for number, name in enumerate(spine, 1):
        if name in closed:
            raise UserError(
                f"{path}: {name} in it is encrypted; get a copy without protection, or take it away"
            )
        content = _content(path, archive, name)
        # As HTML, though EPUB says XHTML: a chapter that is not well-formed is read all the same.
        page = html.document_fromstring(content) if content.strip() else html.Element("html")
        yield number / len(spine), _page_text(page)


def _encrypted(path: Path, archive: ZipFile) -> set[str]:
    """Names of encrypted files; fonts often are, in books that anybody may read."""
    name = "META-INF/encryption.xml"
    if name not in archive.namelist():
        return set()
    return {
        unquote(item.get("URI", "")) for item in _xml(path, archive, name).iterfind(".//{*}CipherReference")
    }


def _page_text(page: Any) -> str:
    parts: list[str] = []

    def walk(element: Any) -> None:
        if not isinstance(element.tag, str):
            return  # a comment
        tag = element.tag.rpartition("}")[2].lower()
        if tag in LEFT_OUT:
            return
        edge = "\n" if BLOCK.fullmatch(tag) else ""
        # Line breaks of the source are white space, as browsers see it.
        parts.extend((edge, " ".join((element.text or "").split("\n"))))
        for child in element:
            walk(child)
            parts.append(" ".join((child.tail or "").split("\n")))
        parts.append(edge)

    walk(page)
    return _lines("".join(parts))


def _word_text(path: Path, archive: ZipFile) -> Iterator[tuple[float, str]]:
    root = _xml(path, archive, "word/document.xml")
    parts: list[str] = []

    def walk(element: Any) -> None:
        if element.tag == FALLBACK:
            return
        # Only w:t is text that stands: deleted text is w:delText, the code of fields w:instrText.
        if element.tag == WORD + "t":
            parts.append(element.text or "")
        elif element.tag == WORD + "tab":
            parts.append("\t")
        elif element.tag in (WORD + "br", WORD + "cr"):
            parts.append("\n")
        for child in element:
            walk(child)
        if element.tag == WORD + "p":
            parts.append("\n")

    walk(root)
    yield 1.0, _lines("".join(parts))


def _lines(text: str) -> str:
    """Without the white space around lines and empty lines."""
    return "\n".join(line for line in map(str.strip, text.split("\n")) if line)


def _xml(path: Path, archive: ZipFile, name: str) -> Any:
    from lxml import etree

    return etree.fromstring(
        # A file of somebody else's: no entity of it may read other files or grow without end.
        _content(path, archive, name),
        etree.XMLParser(resolve_entities=False, no_network=True),
    )


def _content(path: Path, archive: ZipFile, name: str) -> bytes:
    # Before it is unpacked, in bytes, of which UTF-8 takes up to 4: a small zip can hold gigabytes of one
    # letter.
    if archive.getinfo(name).file_size > 4 * decode.LONGEST_DOCUMENT:
        raise UserError(
            f"{path}: {name} in it is longer than {decode.LONGEST_DOCUMENT:,} characters; take it away"
        )
    return archive.read(name)

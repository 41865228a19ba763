import zipfile
from pathlib import Path

import pytest

from zhllama import decode
from zhllama.config import UserError
from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.read import Layout, read_documents, read_file

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><manifest>
<item id="b" href="text/b%20.xhtml" media-type="application/xhtml+xml"/><item id="i" href="i.png" media-type="image/png"/>
<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="i"/><itemref idref="a"/><itemref idref="b"/></spine></package>"""
PAGE = """<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "x.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>书名</title><style>p {{}}</style></head><body>
<nav><ol><li>目录</li></ol></nav><h1>{}</h1><div>\n<p>且说<b>那</b>日&nbsp;天色\n已晚，<br/>各自<ruby>归<rt>guī</rt></ruby>去。</p>
<!-- 注 --><p>次日。</p></div></body></html>"""
EXPECTED = "且说那日\xa0天色 已晚，\n各自归去。\n次日。"
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
MC = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
DOCX = f"""<?xml version="1.0" encoding="UTF-8"?><w:document {W} {MC}><w:body>
<w:p><w:r><w:t xml:space="preserve">第一</w:t></w:r><w:r><w:t>段</w:t><w:br/><w:t>换行</w:t><w:tab/><w:t>制表</w:t></w:r>
<w:del><w:r><w:delText>删去</w:delText></w:r></w:del></w:p><w:p/>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>格一</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>格二</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
<mc:AlternateContent><mc:Choice><w:p><w:r><w:t>框</w:t></w:r></w:p></mc:Choice>
<mc:Fallback><w:p><w:r><w:t>框</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent></w:body></w:document>"""


def archive(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def epub(path: Path, **more: str) -> Path:
    files = {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/a.xhtml": PAGE.format("第一回"),
        "OEBPS/text/b .xhtml": PAGE.format("第二回"),
    }
    return archive(path, **{**files, **more})


def docx(path: Path) -> Path:
    return archive(path, **{"word/document.xml": DOCX})


def test_each_chapter_of_a_book_is_a_document_in_reading_order(tmp_path: Path) -> None:
    told: list[int] = []
    path = epub(tmp_path / "a.epub")
    passages = list(read_file(path, Layout(), told.append))
    assert passages == [(1, f"第一回\n{EXPECTED}"), (2, f"第二回\n{EXPECTED}")]
    assert told[-1] == path.stat().st_size


def test_a_word_file_is_one_document_with_its_tables_and_newlines(tmp_path: Path) -> None:
    assert list(read_file(docx(tmp_path / "a.docx"), Layout())) == [(1, "第一段\n换行\t制表\n格一\n格二\n框")]


def test_an_empty_chapter_is_an_empty_document(tmp_path: Path) -> None:
    path = epub(tmp_path / "a.epub", **{"OEBPS/a.xhtml": " "})
    assert list(read_documents(path)) == [f"第二回\n{EXPECTED}"]


@pytest.mark.parametrize("make", [epub, docx])
def test_a_cut_file_is_named_or_skipped_as_asked(tmp_path: Path, make: object) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = make(folder / f"a.{make.__name__}")  # type: ignore[operator, attr-defined]
    path.write_bytes(path.read_bytes()[:-40])
    (folder / "b.txt").write_text("长江是亚洲第一长河，发源于青藏高原，最后注入东海。", encoding="utf-8")
    settings = {
        "corpus": str(folder),
        "output": str(tmp_path / "out"),
        "workers": 1,
        "near_duplicates": False,
    }
    with pytest.raises(UserError, match=rf"{path.name}: not a whole .*; copy it again"):
        clean(CleanConfig(**settings))  # type: ignore[arg-type]
    clean(CleanConfig(**settings, broken="skip"))  # type: ignore[arg-type]
    assert len(list(read_documents(tmp_path / "out"))) == 1


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["a.epub", "a.docx"])
def test_what_is_no_archive_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: not a whole"):
        list(read_file(tmp_path / name, Layout()))


def test_archives_of_another_kind_are_named(tmp_path: Path) -> None:
    for path in (archive(tmp_path / "a.epub", a="b"), archive(tmp_path / "a.docx", a="b")):
        with pytest.raises(UserError, match=r"not a whole .*There is no item named"):
            list(read_file(path, Layout()))
    for container in ("<a", "<a/>"):
        with pytest.raises(UserError, match=r"not a whole EPUB"):
            list(read_file(epub(tmp_path / "b.epub", **{"META-INF/container.xml": container}), Layout()))


def test_an_encrypted_chapter_is_named_and_an_encrypted_font_is_not(tmp_path: Path) -> None:
    listed = '<encryption xmlns:e="x"><e:CipherReference URI="{}"/></encryption>'
    font = {"META-INF/encryption.xml": listed.format("OEBPS/font.otf")}
    assert len(list(read_file(epub(tmp_path / "a.epub", **font), Layout()))) == 2
    chapter = {"META-INF/encryption.xml": listed.format("OEBPS/text/b%20.xhtml")}
    with pytest.raises(UserError, match=r"a.epub: OEBPS/text/b .xhtml in it is encrypted"):
        list(read_file(epub(tmp_path / "a.epub", **chapter), Layout()))


def test_a_chapter_beyond_the_longest_document_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "LONGEST_DOCUMENT", 100)
    with pytest.raises(UserError, match=r"a.docx: word/document.xml in it is longer than 100 characters"):
        list(read_file(docx(tmp_path / "a.docx"), Layout()))

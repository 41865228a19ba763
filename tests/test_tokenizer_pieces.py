"""Pieces from models, directories and word lists; what is dropped is counted, what is broken refused."""

import io
from pathlib import Path

import pytest
import sentencepiece

from zhllama.config import UserError
from zhllama.tokenizer.load import read_proto
from zhllama.tokenizer.pieces import read_pieces, read_words


def test_word_list_of_a_jieba_dictionary(tmp_path: Path) -> None:
    file = tmp_path / "w.txt"
    file.write_text("\ufeff中国 3 n\r\n人民\t5\n\n  \n中国\n银\x07行\n零\u200b宽\n　\n", encoding="utf-8")
    source = read_pieces(file)
    assert source.pieces == ["中国", "人民"]
    assert source.dropped == {"given twice": 1, "empty": 3, "control characters": 2}
    assert source.normaliser is None


def test_words_of_several_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"中国\n{name}\n\x00\n", encoding="utf-8")
    words, dropped = read_words([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], "--words")
    assert words == ["中国", "a", "b"]
    assert dropped == {"control characters": 2, "given twice": 1}
    assert read_words([], "--words") == ([], {})


def train(folder: Path, normaliser: str) -> Path:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["中国，人民", "人民 中国"] * 9),
        model_writer=writer,
        model_type="bpe",
        vocab_size=14,
        hard_vocab_limit=False,
        normalization_rule_name=normaliser,
        minloglevel=2,
    )
    (folder / "a.model").write_bytes(writer.getvalue())
    return folder / "a.model"


def test_model_pieces_lose_their_space_mark(tmp_path: Path) -> None:
    source = read_pieces(train(tmp_path, "identity"))
    assert {"中国", "人民", "，"} <= set(source.pieces)
    assert not any("▁" in piece for piece in source.pieces)
    assert source.dropped["empty"] == 1
    assert source.normaliser is None


def test_normalising_model_is_named(tmp_path: Path) -> None:
    source = read_pieces(train(tmp_path, "nmt_nfkc"))
    assert source.normaliser == "nmt_nfkc"
    assert "，" not in source.pieces


def test_a_model_cut_anywhere_is_refused(tmp_path: Path) -> None:
    model = train(tmp_path, "identity")
    whole = model.read_bytes()
    proto = read_proto(model, "--chinese")
    proto.ClearField("denormalizer_spec")  # empty, and the last thing in the file
    for size in range(proto.ByteSize()):
        model.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"not a SentencePiece model"):
            read_pieces(model)


def test_lists_in_other_encodings_are_refused(tmp_path: Path, bytelevel_base: Path) -> None:
    file = tmp_path / "w.txt"
    for encoding in ("gbk", "gb18030", "big5", "utf-16"):
        file.write_bytes("中文\n人民\n".encode(encoding))
        with pytest.raises(UserError, match=r"not UTF-8 at byte 0; if it is GBK, convert it: iconv"):
            read_pieces(file)
    with pytest.raises(UserError, match=r"no chinese_sp\.model inside"):
        read_pieces(bytelevel_base)
    with pytest.raises(UserError, match=r"--chinese .*: no such file"):
        read_pieces(tmp_path / "none.txt")

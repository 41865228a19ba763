"""The alphabet, the admission of pieces, byte-level prefixes."""

import io

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from zhllama.tokenizer.admit import SentencePieceVocabulary, admit, encode, self_overlaps
from zhllama.tokenizer.alphabet import is_cjk, only_cjk_continues, spell, unspell
from zhllama.tokenizer.bytelevel import ByteLevelVocabulary
from zhllama.tokenizer.load import Loaded, load


@pytest.mark.parametrize("text", ["中", "𠮷", "，", "（", "ー", "ㄅ", "　", "〇", "中国"])
def test_cjk(text: str) -> None:
    assert is_cjk(text)


@pytest.mark.parametrize("text", ["", "a", "中a", "—", "“", "…", "·", " ", "안", "ㄱ", "😀", "\ufe0f"])
def test_not_cjk(text: str) -> None:
    assert not is_cjk(text)


def test_prefixes_that_only_cjk_continues() -> None:
    assert only_cjk_continues("中".encode()[:2])
    assert only_cjk_continues("𠮷".encode()[:2])
    assert only_cjk_continues("，".encode()[:2])
    for raw in (b"\xe3\x84", b"\xe4", b"\xef\xb8", b"\xf0", b"\xe2\x80", b"a", "中".encode(), b"\xe4a"):
        assert not only_cjk_continues(raw)


def test_spelling_comes_back() -> None:
    assert unspell(spell("中 é\n")) == "中 é\n".encode()
    assert len({spell(chr(code)) for code in range(128)}) == 128


def test_encode_takes_the_best_rank_and_the_leftmost() -> None:
    assert encode(list("aaa"), {"aa": 1.0}) == ["aa", "a"]
    assert encode(list("abc"), {"ab": 2.0, "bc": 1.0}) == ["a", "bc"]


def test_characters_come_first_and_missing_ones_are_counted() -> None:
    result = admit(["中国", "人"], SentencePieceVocabulary(None))
    assert result.keys == ["人", "中", "国", "中国"]
    assert (result.characters, result.merges, result.intermediates) == (3, 1, 2)
    assert result.texts == result.keys


def test_admitting_the_result_again_gives_it_again() -> None:
    words = ["中华人民共和国", "人民银行", "共和", "国人", "华人", "是不", "不是", "是不是", "常常"]
    once = admit(words, SentencePieceVocabulary(None))
    again = admit(once.texts, SentencePieceVocabulary(None))
    assert again.keys == once.keys
    assert again.intermediates == 0


def test_every_admitted_piece_is_reachable() -> None:
    vocabulary = SentencePieceVocabulary(None)
    result = admit(["中华人民共和国", "华人", "人民", "共和国", "民共"], vocabulary)
    for key in result.keys:
        assert encode(list(key), vocabulary.ranks) == [key]


@pytest.mark.parametrize(
    "order", [["是不", "不是", "是不是"], ["是不", "是不是", "不是"], ["不是", "是不是", "是不"]]
)
def test_border_rule_holds_whichever_comes_last(order: list[str]) -> None:
    result = admit(order, SentencePieceVocabulary(None))
    (refused,) = result.refused.values()
    assert len(refused) == 1
    assert list(self_overlaps("是不是")) == [("是", "是不", "不是")]
    assert list(self_overlaps("常常")) == []


def test_budget_is_kept() -> None:
    assert len(admit(["中国", "人民", "银行"], SentencePieceVocabulary(None), budget=4).keys) == 4


def test_part_of_a_mixed_base_piece_is_refused() -> None:
    proto = sentencepiece_model_pb2.ModelProto()
    for place, text in enumerate(["▁", "中", "国", "▁中国"]):
        proto.pieces.add(piece=text, score=-place, type=1)
    result = admit(["中国"], SentencePieceVocabulary(proto))
    assert result.refused == {"would change tokens of other text": ["中国"]}


def test_a_candidate_that_no_merge_reaches_is_refused() -> None:
    class Stuck(SentencePieceVocabulary):
        def allowed(self, key: str) -> bool:
            return len(key) != 2

    result = admit(["中国人"], Stuck(None))
    assert result.refused == {"no way to reach it": ["中国人"]}


@pytest.fixture(scope="module")
def bytelevel(bytelevel_base: object) -> Loaded:
    return load(str(bytelevel_base), "--base")


def test_bytelevel_candidate_must_be_one_word(bytelevel: Loaded) -> None:
    result = admit(["中，国", "〇〇"], ByteLevelVocabulary(bytelevel.fast))
    assert result.refused["not one word to the base's pre-tokenizer"] == ["中，国", "〇〇"]


def test_bytelevel_character_shared_bytes_are_refused(bytelevel: Loaded) -> None:
    # U+FE30 begins with the bytes of U+FE0F, the emoji's variation selector.
    result = admit(["\ufe30"], ByteLevelVocabulary(bytelevel.fast))
    assert result.refused == {"would change tokens of other text": ["\ufe30"]}


def test_bytelevel_characters_share_their_leading_bytes(bytelevel: Loaded) -> None:
    result = admit(["黾", "黿"], ByteLevelVocabulary(bytelevel.fast))
    assert len(result.texts) == 2
    assert all(only_cjk_continues(unspell(key)) or is_cjk(unspell(key).decode()) for key in result.keys)


def test_what_the_base_has_is_refused() -> None:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["中国 人民"] * 9),
        model_writer=writer,
        model_type="bpe",
        vocab_size=11,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(writer.getvalue())
    vocabulary = SentencePieceVocabulary(proto)
    assert admit(["人"], vocabulary).refused == {"in the base already": ["人"]}

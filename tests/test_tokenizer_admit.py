"""The alphabet, the admission of pieces, byte-level prefixes."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from zhllama.tokenizer import llamacpp
from zhllama.tokenizer.admit import SentencePieceVocabulary, admit, encode, self_overlaps
from zhllama.tokenizer.alphabet import is_cjk, only_cjk_continues, spell, unspell
from zhllama.tokenizer.bytelevel import ByteLevelVocabulary
from zhllama.tokenizer.check import outside_cjk
from zhllama.tokenizer.load import Loaded, load
from zhllama.tokenizer.merge import extend_base
from zhllama.tokenizer.write import sentencepiece_tokenizer


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


@pytest.mark.parametrize("method", ["text", "split"])
def test_a_step_must_be_a_text_of_its_own(method: str) -> None:
    """国人 is what most wait for, but alone it is no text, or several words to the pre-tokenizer."""

    class NotAlone(SentencePieceVocabulary):
        def text(self, key: str) -> str | None:
            return None if method == "text" and key == "国人" else key

        def split(self, texts: Sequence[str]) -> list[list[str]]:
            found = super().split(texts)
            return [[] if method == "split" and t == "国人" else s for t, s in zip(texts, found, strict=True)]

    wanted = ["中国人民", "大国人心"]
    assert "国人" in admit(wanted, SentencePieceVocabulary(None)).keys
    result = admit(wanted, NotAlone(None))
    assert "国人" not in result.keys
    assert result.refused == {}
    assert set(wanted) <= set(result.keys)


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


# Few characters, so that words overlap themselves and one another in every way; some the bases lack, and
# U+FE30 begins with the bytes of U+FE0F, which is no CJK.
WORDS = st.lists(st.text("是不二十中国𠮷，\ufe30", min_size=1, max_size=6), min_size=1, max_size=25)
TEXTS = st.lists(st.text("是不二十中国𠮷，\ufe30\ufe0fa 1é\n", max_size=14), min_size=1, max_size=8)
EXAMPLES = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def reachable(new: Tokenizer, keys: list[str], texts: dict[str, str]) -> bool:
    return all(
        new.encode(texts[key], add_special_tokens=False).tokens == [key] for key in keys if key in texts
    )


def test_any_word_list_gives_a_sentencepiece_model_its_guarantees(sentencepiece_base: Path) -> None:
    base = load(sentencepiece_base)
    assert base.proto is not None
    original = sentencepiece_tokenizer(base.proto)

    @EXAMPLES
    @given(WORDS, TEXTS)
    def holds(words: list[str], texts: list[str]) -> None:
        admitted, fast, proto = extend_base(base, words, ["<x>"])
        assert proto is not None
        first = len(base.proto.pieces)
        assert list(proto.pieces[:first]) == list(base.proto.pieces)
        assert [piece.piece for piece in proto.pieces[first:]] == [*admitted.keys, "<x>"]
        scores = [piece.score for piece in proto.pieces[first:-1]]
        assert scores == sorted(set(scores), reverse=True)
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        unprefixed = Tokenizer.from_str(fast.to_str())
        unprefixed.normalizer = None
        assert reachable(unprefixed, admitted.keys, {key: key for key in admitted.keys})
        for text in [*texts, *words, "".join(words)]:
            before, after = (t.encode(text, add_special_tokens=False) for t in (original, fast))
            assert processor.encode(text) == after.ids
            assert fast.decode(after.ids) == text
            assert outside_cjk(text, before) == outside_cjk(text, after)

    holds()


@pytest.mark.parametrize("name", ["bytelevel_base", "llama3_base"])
def test_any_word_list_gives_a_bytelevel_base_its_guarantees(
    request: pytest.FixtureRequest, name: str
) -> None:
    base = load(request.getfixturevalue(name))
    before_all = base.fast.get_vocab()

    @EXAMPLES
    @given(WORDS, TEXTS)
    def holds(words: list[str], texts: list[str]) -> None:
        admitted, fast, _ = extend_base(base, words, ["<x>"])
        vocabulary = fast.get_vocab()
        assert {token: vocabulary[token] for token in before_all} == before_all
        assert [vocabulary[key] for key in [*admitted.keys, "<x>"]] == list(
            range(len(before_all), len(vocabulary))
        )
        whole = {
            key: text
            for key in admitted.keys
            if (text := unspell(key).decode(errors="ignore")) and spell(text) == key
        }
        assert reachable(fast, admitted.keys, whole)
        for text in [*texts, *words, "".join(words)]:
            before, after = (t.encode(text, add_special_tokens=False) for t in (base.fast, fast))
            assert fast.decode(after.ids) == text
            assert outside_cjk(text, before) == outside_cjk(text, after)

    holds()


@pytest.mark.skipif(not llamacpp.is_available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize("name", ["sentencepiece_base", "bytelevel_base", "llama3_base"])
def test_any_word_list_reads_alike_in_llamacpp(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    base = load(request.getfixturevalue(name))

    @settings(EXAMPLES, max_examples=15)
    @given(WORDS, TEXTS)
    def holds(words: list[str], texts: list[str]) -> None:
        _, fast, proto = extend_base(base, words, [])
        with llamacpp.opened(replace(base, fast=fast, proto=proto)) as runtime:
            lines = [*texts, *words, "".join(words)]
            assert runtime.encode(lines) == [
                fast.encode(line, add_special_tokens=False).ids for line in lines
            ]

    holds()

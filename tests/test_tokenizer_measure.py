"""Numbers of tokenizer-report that are known in advance."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from zhllama.tokenizer.load import Loaded, load
from zhllama.tokenizer.measure import (
    Texts,
    chinese_share,
    chinese_words,
    disagreements,
    language,
    measure,
    unreachable,
)


def test_share_and_language() -> None:
    assert chinese_share(["中a 国b"]) == 0.5
    assert [language(line) for line in ("中国", "中 plain", "plain", "   ")] == [
        "Chinese",
        "mixed",
        "other",
        "other",
    ]


def test_words_are_counted_in_chinese_lines() -> None:
    assert chinese_words(["北京 is", "plain"]) == (["北京 is"], 1)


def test_density_by_language_and_rare_pieces(bytelevel_base: Path) -> None:
    loaded = load(bytelevel_base)
    texts = Texts({"a": ["aaaa", "中国"], "b": ["中 aaaa"]}, ([], 0), rare=2)
    found = measure(loaded, loaded.fast, texts, (32, 2))
    assert found.language_characters_per_token["other"] == 4 / len(loaded.fast.encode("aaaa").ids)
    assert found.language_bytes_per_token["Chinese"] == 6 / len(loaded.fast.encode("中国").ids)
    assert found.drift_by_text == {"a": 0, "b": None}
    assert found.embedding_megabytes == loaded.fast.get_vocab_size() * 32 * 2 * 2 / 1e6
    assert found.tokens_per_word is None
    once = measure(loaded, loaded.fast, Texts({"a": ["aaaa"]}, ([], 0), rare=1), (32, 1))
    assert 0 < once.rare < found.rare + 5
    assert once.rare_share == once.rare / (loaded.fast.get_vocab_size() - 3)


def test_unreachable_pieces_are_found(merged: tuple[Loaded, Loaded], tmp_path: Path) -> None:
    new = merged[1]
    assert unreachable(new) == []
    state = json.loads(new.fast.to_str())
    state["model"] |= {"merges": [], "ignore_merges": False}
    Tokenizer.from_str(json.dumps(state)).save(str(tmp_path / "tokenizer.json"))
    assert len(unreachable(load(tmp_path))) > 100


def test_disagreement_of_runtimes_is_counted(sentencepiece_base: Path, tmp_path: Path) -> None:
    loaded = load(sentencepiece_base)
    lines = ["the return of the", "中国 people"]
    assert disagreements(loaded, lines) == {"SentencePiece": 0, "transformers": None, "llama.cpp": 0}
    state = json.loads(loaded.fast.to_str())
    state["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_base.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert disagreements(load(tmp_path), lines) == {"SentencePiece": 2, "transformers": 0, "llama.cpp": 2}

"""Sampling in bounded memory, weights, runs of letters and marks, cuts at words."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhllama.config import UserError
from zhllama.tokenizer.alphabet import CJK_RANGES, CJK_RUN
from zhllama.tokenizer.load import load
from zhllama.tokenizer.sample import (
    APART,
    LEAN,
    CorpusSample,
    count_runs,
    cut_at_words,
    cut_like_base,
    cuts_marks_off,
    draw_sample,
    draw_samples,
    frequent_characters,
    thin,
)


def sample(*lines: str, weight: float = 1.0) -> CorpusSample:
    return CorpusSample("c", list(lines), [], 1, 1, weight)


def test_sampling_is_bounded_and_repeatable() -> None:
    documents = [f"中国{number:04}" * 100 for number in range(2000)]
    first, second = draw_sample("c", documents, 1_000_000, 3), draw_sample("c", iter(documents), 1_000_000, 3)
    assert first == second
    assert first != draw_sample("c", documents, 1_000_000, 4)
    assert sum(len(line.encode()) for line in first.lines + first.held_out) <= 1_000_000
    assert 100 < first.kept < first.documents == 2000


def test_unweighted_corpora_are_one_sample() -> None:
    (found,) = draw_samples({"a": ["中国\n人民"], "b": ["银行"]}, [], 1, 0)
    assert (found.name, found.documents, found.weight) == ("a, b", 2, 1)
    assert "".join(found.lines + found.held_out) == "中国人民银行"


def test_weights_decide_the_proportions_of_counts() -> None:
    large, small = ["中" * 50] * 400, ["国" * 50] * 100
    samples = draw_samples({"large": large, "small": small}, [1, 3], 1, 0)
    counts = Counter[str]()
    for run, count in count_runs(samples, "中国", lean=False).items():
        counts[run[0]] += count * len(run)
    assert counts["国"] / counts["中"] == pytest.approx(3, rel=0.02)
    assert min(found.weight for found in samples) == 1


def test_corpora_without_text_or_chinese_are_named() -> None:
    with pytest.raises(UserError, match="--corpus b: no text in it"):
        draw_samples({"a": ["中国"], "b": [" \n"]}, [1, 1], 1, 0)
    with pytest.raises(UserError, match="--corpus a, b: no Chinese characters"):
        draw_samples({"a": ["plain"], "b": ["English"]}, [], 1, 0)


def test_frequent_characters_are_chinese_and_ordered() -> None:
    assert frequent_characters([sample("国中国a", "a中，国"), sample("，𠮷𠮷")], 2) == [
        "国",
        "中",
        "，",
        "𠮷",
    ]


def test_letters_and_marks_make_runs_of_their_own() -> None:
    text = "我们，中国（人民）银行。《书》、《你》１９９８年abc カー"
    apart = [
        "我们",
        "，",
        "中国",
        "（",
        "人民",
        "）",
        "银行",
        "。《",
        "书",
        "》、《",
        "你",
        "》",
        "１９９８年",
        "カー",
    ]
    lean = [
        "我们",
        "，中国",
        "（人民",
        "）",
        "银行",
        "。",
        "《书",
        "》、",
        "《你",
        "》",
        "１９９８年",
        "カー",
    ]
    assert APART.findall(text) == apart
    assert LEAN.findall(text) == lean


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.sampled_from([chr(low) for low, _ in CJK_RANGES] + list("，（中国人。a \n")), max_size=40))
def test_runs_leave_no_chinese_out(text: str) -> None:
    for pattern in (APART, LEAN):
        assert "".join(pattern.findall(text)) == "".join(CJK_RUN.findall(text))


def test_long_paragraphs_are_cut_and_not_skipped() -> None:
    line = "中" * 5000 + "。" + "国" * 3000
    counts = count_runs([sample(line)], "中国。", lean=True)
    assert sum(len(run) * count for run, count in counts.items()) == len(line)
    assert max(len(run.encode()) for run in counts) < 4192


def test_rare_characters_cut_runs() -> None:
    assert count_runs([sample("中国䶮人民", "人民")], "中国人民", lean=False) == {"中国": 1, "人民": 2}


def test_thinning_keeps_the_sums() -> None:
    counts = Counter(
        {f"{chr(0x4E00 + i % 500)}{chr(0x5E00 + i)}": 1 + i % 3 for i in range(9000)} | {"中国": 5000}
    )
    thinned = thin(counts, 2000, seed=1)
    assert thinned == thin(counts, 2000, seed=1)
    assert len(thinned) == pytest.approx(2000, rel=0.1)
    assert thinned["中国"] == 5000
    assert thinned.total() == pytest.approx(counts.total(), rel=0.05)
    assert thin(counts, 9001, seed=1) is counts


def test_jieba_cuts_at_words_and_learns_new_ones() -> None:
    counts = Counter({"中国人民银行": 2, "饕餮盛宴节": 1})
    assert cut_at_words(counts, [])["饕餮盛宴节"] == 0
    assert cut_at_words(counts, ["饕餮盛宴节"])["饕餮盛宴节"] == 1
    assert all(len(word) < 6 for word in cut_at_words(Counter({"我们在北京天安门": 1}), []))


def test_runs_are_cut_where_the_base_cuts(bytelevel_base: object, llama3_base: object) -> None:
    counts = Counter({"，中国": 3, "中国": 1})
    assert cut_like_base(counts, load(str(bytelevel_base)).fast) == {"，": 3, "中国": 4}
    assert cut_like_base(counts, load(str(llama3_base)).fast) == counts  # one mark may begin a word there
    assert cuts_marks_off(load(str(bytelevel_base)).fast)
    assert not cuts_marks_off(load(str(llama3_base)).fast)

"""tokenizer-report: numbers that are known in advance, the verdict, the page."""

import json
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.tokenizer.load import load
from zhllama.tokenizer.measure import Measured, drift
from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
from zhllama.tokenizer.report import (
    TokenizerReportConfig,
    judge,
    model_width,
    sample_sentences,
    tokenizer_report,
)


@pytest.fixture
def files(tmp_path: Path, chinese_text: str, english_text: str) -> dict[str, str]:
    (tmp_path / "zh.txt").write_text(chinese_text[:8000], encoding="utf-8")
    (tmp_path / "en.txt").write_text(english_text[:4000], encoding="utf-8")
    return {"zh": f"zh={tmp_path / 'zh.txt'}", "en": f"en={tmp_path / 'en.txt'}"}


def test_report_compares_and_writes_a_page(
    tmp_path: Path, files: dict[str, str], sentencepiece_base: Path, bytelevel_base: Path
) -> None:
    (tmp_path / "w.txt").write_text("中国\n人民\n北京\n", encoding="utf-8")
    merge_tokenizer(
        MergeTokenizerConfig(str(sentencepiece_base), str(tmp_path / "w.txt"), str(tmp_path / "m"))
    )
    tokenizers = [str(sentencepiece_base), str(tmp_path / "m"), str(bytelevel_base)]
    tokenizer_report(TokenizerReportConfig(tokenizers, list(files.values()), str(tmp_path / "r"), hidden=64))
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    base, merged = report["tokenizers"]["tokenizer.model"], report["tokenizers"]["m"]
    other = report["tokenizers"][bytelevel_base.name]
    assert merged["characters_per_token"]["zh"] > base["characters_per_token"]["zh"]
    assert merged["characters_per_token"]["en"] == base["characters_per_token"]["en"]
    assert (base["drift"], merged["drift"], other["drift"]) == (0, 0, None)
    assert base["embedding_megabytes"] == 1000 * 64 * 2 / 1e6
    assert merged["tokens_per_word"] < base["tokens_per_word"]
    assert report["verdict"].startswith("Extending pays")
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert merged["unreachable"] == 0
    assert merged["disagreements"] == {"SentencePiece": 0, "transformers": 0, "llama.cpp": 0}
    assert (base["disagreements"]["transformers"], other["disagreements"]["SentencePiece"]) == (None, None)
    assert base["language_characters_per_token"]["other"] == base["characters_per_token"]["en"]
    assert merged["drift_by_text"] == {"zh": None, "en": 0}
    assert merged["rare"] > base["rare"] > 0
    assert set(report["knees"]["growth"]) == {"m"}
    assert set(report["knees"]["coverage"]) == {"tokenizer.model", "m", bytelevel_base.name}
    assert "token" in page


def test_width_comes_from_the_model_beside_the_tokenizer(
    model_dirs: dict[str, Path], merged_tokenizers: dict[str, Path], bytelevel_base: Path
) -> None:
    untied, tied = load(model_dirs["sentencepiece"]), load(model_dirs["bytelevel"])
    bare = load(merged_tokenizers["sentencepiece"])
    assert model_width(untied, tied, None) == (32, 2)
    assert model_width(tied, untied, None) == (32, 1)
    assert model_width(bare, untied, None) == (32, 2)  # it will go into the first one's model
    assert model_width(bare, untied, 64) == (64, 2)
    assert model_width(bare, load(bytelevel_base), None) == (4096, 1)


def test_text_without_chinese_has_a_page_too(
    tmp_path: Path, files: dict[str, str], bytelevel_base: Path
) -> None:
    tokenizer_report(TokenizerReportConfig([str(bytelevel_base)], [files["en"]], str(tmp_path / "r")))
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["knees"] == {}
    assert report["verdict"].startswith("Do not extend: 0%")
    assert report["tokenizers"][bytelevel_base.name]["tokens_per_word"] is None


def test_samples_are_one_a_text() -> None:
    texts = {"zh": ["短", "这一行文字比二十个字要长一些所以被选中了呀"], "en": ["plain"]}
    assert sample_sentences(texts) == [texts["zh"][1]]
    assert sample_sentences({"zh": ["短"]}) == ["短"]
    assert sample_sentences({"en": ["plain"]}) == ["plain"]


def test_real_chinese_tokenizer_needs_no_extension(
    tmp_path: Path, shared_data: Path, chinese_text: str
) -> None:
    (tmp_path / "news.txt").write_text(chinese_text[:30_000], encoding="utf-8")
    llama, chinese = shared_data / "llama-tokenizer.model", shared_data / "chinese-llama2-tokenizer.model"
    for name, model in (("yes", llama), ("no", chinese)):
        tokenizer_report(
            TokenizerReportConfig([str(model)], [f"news={tmp_path / 'news.txt'}"], str(tmp_path / name))
        )
    verdicts = {name: json.loads((tmp_path / name / "report.json").read_text()) for name in ("yes", "no")}
    assert verdicts["yes"]["verdict"].startswith("Extending pays")
    assert verdicts["no"]["verdict"].startswith(
        "Do not extend: chinese-llama2-tokenizer.model already carries 1.3"
    )
    assert verdicts["no"]["tokenizers"][chinese.name]["unreachable"] > 500


def test_drift_is_seen(sentencepiece_base: Path) -> None:
    from tokenizers import Tokenizer

    base = load(sentencepiece_base).fast
    state = json.loads(base.to_str())
    state["model"]["merges"] = state["model"]["merges"][50:]
    damaged = Tokenizer.from_str(json.dumps(state))
    assert drift(damaged, base, ["the return then", "x", "中 the"]) == 0.5
    assert drift(base, base, ["中国"]) is None


def test_verdict_can_say_no() -> None:
    chinese, english = {"t": ["中国人民"]}, {"t": ["plain english"]}
    assert "carries only 0.50" in judge({"a": Measured(tokens={"t": 8})}, chinese)
    assert judge({"a": Measured(tokens={"t": 3})}, chinese).startswith("Do not extend: a already")
    assert judge({"a": Measured(tokens={"t": 3})}, english).startswith("Do not extend: 0%")
    much = {"t": ["中国人民"], "u": ["plain english " * 9]}
    assert judge({"a": Measured(tokens={"t": 8, "u": 40})}, much).startswith("Do not extend: 4%")
    measured = {"a": Measured(tokens={"t": 8}), "b": Measured(tokens={"t": 4})}
    assert "b needs 50% fewer tokens" in judge(measured, chinese)


def test_refusals(tmp_path: Path, files: dict[str, str], bytelevel_base: Path) -> None:
    base, out = str(bytelevel_base), str(tmp_path / "r")
    cases = [
        (lambda: TokenizerReportConfig([], [files["zh"]], out), "--tokenizer: give at least one"),
        (lambda: TokenizerReportConfig([base], [], out), "--text: give at least one"),
        (lambda: TokenizerReportConfig([base], [files["zh"]], out, hidden=0), "--hidden 0"),
        (lambda: TokenizerReportConfig([base], [files["zh"]], out, rare=0), "--rare 0"),
        (lambda: TokenizerReportConfig([base, base], [files["zh"]], out), "given twice"),
        (lambda: TokenizerReportConfig([base], [files["zh"], files["zh"]], out), "used twice"),
        (lambda: TokenizerReportConfig([base], ["zh.txt"], out), "write it as name=FILE"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            tokenizer_report(make())
    assert not Path(out).exists()

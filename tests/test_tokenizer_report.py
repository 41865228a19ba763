"""tokenizer-report: numbers that are known in advance, the verdict, the page."""

import json
from pathlib import Path

import pytest

from zhllama.config import UserError
from zhllama.tokenizer.load import load
from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
from zhllama.tokenizer.report import (
    Measured,
    TokenizerReportConfig,
    chinese_share,
    coverage,
    drift,
    judge,
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
    assert page.count("<svg") == 2
    assert "token" in page


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
    measured = {"a": Measured(tokens={"t": 8}), "b": Measured(tokens={"t": 4})}
    assert "b needs 50% fewer tokens" in judge(measured, chinese)


def test_share_and_coverage(bytelevel_base: Path) -> None:
    assert chinese_share(["中a 国b"]) == 0.5
    x, y = coverage(load(bytelevel_base).fast, ["aaab"])
    assert x[0] == 1
    assert y[-1] == 1
    assert y == sorted(y)


def test_refusals(tmp_path: Path, files: dict[str, str], bytelevel_base: Path) -> None:
    base, out = str(bytelevel_base), str(tmp_path / "r")
    cases = [
        (lambda: TokenizerReportConfig([], [files["zh"]], out), "--tokenizer: give at least one"),
        (lambda: TokenizerReportConfig([base], [], out), "--text: give at least one"),
        (lambda: TokenizerReportConfig([base], [files["zh"]], out, hidden=0), "--hidden 0"),
        (lambda: TokenizerReportConfig([base, base], [files["zh"]], out), "given twice"),
        (lambda: TokenizerReportConfig([base], [files["zh"], files["zh"]], out), "used twice"),
        (lambda: TokenizerReportConfig([base], ["zh.txt"], out), "write it as name=FILE"),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            tokenizer_report(make())
    assert not Path(out).exists()

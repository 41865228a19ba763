"""Real llama.cpp, on a GGUF of the vocabulary, gives the ids that the merged tokenizers give."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers

from zhllama.artifact import read_record
from zhllama.config import UserError
from zhllama.tokenizer import llamacpp
from zhllama.tokenizer.check import llamacpp_differences
from zhllama.tokenizer.fuzz import mixed_texts, plain_texts
from zhllama.tokenizer.load import Loaded, load

pytestmark = pytest.mark.skipif(not llamacpp.is_available(), reason="xllamacpp is not installed")


@pytest.fixture(scope="module")
def runtime(merged: tuple[Loaded, Loaded]) -> Iterator[llamacpp.LlamaCpp]:
    with llamacpp.opened(merged[1]) as runtime:
        yield runtime


def test_fuzz_texts_get_the_same_ids(merged: tuple[Loaded, Loaded], runtime: llamacpp.LlamaCpp) -> None:
    fast = merged[1].fast
    texts = plain_texts(500, seed=7) + mixed_texts(["中国", "是不是", "人民"], 500, seed=7)
    encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding, ids in zip(texts, encodings, runtime.encode(texts), strict=True):
        assert encoding.ids == ids, text


def test_any_text_gets_the_same_ids(merged: tuple[Loaded, Loaded], runtime: llamacpp.LlamaCpp) -> None:
    fast = merged[1].fast
    characters = st.one_of(
        st.sampled_from("中国人民的一是不了，。 \n\t12aé　（）𠮷豈カㄅ\u0301😀"),
        st.characters(
            max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn", "Co"], exclude_characters="▁\x00"
        ),
    )

    @settings(
        max_examples=200, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.text(characters, max_size=30))
    def agrees(text: str) -> None:
        assert runtime.encode([text]) == [fast.encode(text, add_special_tokens=False).ids]

    agrees()


def test_every_added_piece_is_reachable(merged: tuple[Loaded, Loaded]) -> None:
    new = merged[1]
    result = read_record(new.directory)["result"]
    ids = range(result["first_new"], result["first_new"] + result["added"])
    texts = {index: new.piece_bytes(index).decode(errors="ignore") for index in ids}
    whole = {index: text for index, text in texts.items() if text.encode() == new.piece_bytes(index)}
    assert len(whole) > 1000
    with llamacpp.opened(new, prefix=False) as runtime:
        assert runtime.encode(list(whole.values())) == [[index] for index in whole]


def test_merge_gates_agreement_with_llamacpp(merged: tuple[Loaded, Loaded]) -> None:
    report = json.loads((merged[1].directory / "report.json").read_text())
    assert report["checked"]["llamacpp"] == 0


def test_differences_are_named(merged: tuple[Loaded, Loaded]) -> None:
    new = merged[1]
    state = json.loads(new.fast.to_str())
    state["model"] |= {"merges": [], "ignore_merges": False}
    damaged = Tokenizer.from_str(json.dumps(state))
    last = read_record(new.directory)["result"]
    text = new.piece_bytes(last["first_new"] + last["added"] - 1).decode()
    found = list(llamacpp_differences(new.directory, damaged, [("<unk>", text)], ["plain"]))
    assert len(found) == 2
    assert found[0].startswith(f"llama.cpp encodes {text!r} as ['")
    assert "to llama.cpp" in found[1]


def test_special_tokens_are_text_unless_asked_for(
    merged: tuple[Loaded, Loaded], runtime: llamacpp.LlamaCpp
) -> None:
    new = merged[1]
    assert runtime.encode(["a<pad>b"]) == [new.encode_text("a<pad>b")]
    pad = new.fast.token_to_id("<pad>")
    assert [ids.count(pad) for ids in runtime.encode(["a<pad>b"], special=True)] == [1]


@pytest.mark.slow
def test_a_server_may_end_at_once(merged: tuple[Loaded, Loaded], tmp_path: Path) -> None:
    """In a process of its own: one that hangs in the server holds every thread of Python."""
    file = tmp_path / "vocabulary.gguf"
    llamacpp.write_vocabulary(merged[1], file)
    code = (
        "import pathlib, sys; from zhllama.tokenizer.llamacpp import LlamaCpp\n"
        "for _ in range(50): LlamaCpp(pathlib.Path(sys.argv[1])).close()"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=300)


def test_unknown_pre_tokenizer_is_refused(tmp_path: Path, bytelevel_base: Path) -> None:
    fast = Tokenizer.from_file(str(bytelevel_base / "tokenizer.json"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    fast.save(str(tmp_path / "tokenizer.json"))
    loaded = load(tmp_path)
    assert not llamacpp.knows(loaded)
    with pytest.raises(UserError, match="no pre-tokenizer like the one inside"):
        llamacpp.write_vocabulary(loaded, tmp_path / "v.gguf")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(r"\p{N}{1,3}| ?x", "llama-bpe"), (r"\p{L}+|\p{N}| ?x", "qwen2")],
)
def test_pre_tokenizers_are_recognised(tmp_path: Path, bytelevel_base: Path, pattern: str, name: str) -> None:
    fast = Tokenizer.from_file(str(bytelevel_base / "tokenizer.json"))
    byte_level = pre_tokenizers.ByteLevel(use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]
    )
    fast.save(str(tmp_path / "tokenizer.json"))
    assert llamacpp.pre_tokenizer_name(load(tmp_path)) == name
    fast.pre_tokenizer = pre_tokenizers.ByteLevel()
    fast.save(str(tmp_path / "tokenizer.json"))
    assert llamacpp.pre_tokenizer_name(load(tmp_path)) == "gpt-2"


def test_broken_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"llama\.cpp does not load it"):
        llamacpp.LlamaCpp(tmp_path / "x.gguf")


@pytest.mark.parametrize("place", [0, 1])
def test_without_one_of_its_wheels_it_is_not_asked(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = list(llamacpp.WHEELS)
    wheels[place] = "no-such-wheel"
    monkeypatch.setattr(llamacpp, "WHEELS", wheels)
    assert not llamacpp.is_available()


def test_the_server_ends_with_its_block(merged: tuple[Loaded, Loaded]) -> None:
    with llamacpp.opened(merged[1]) as runtime:
        runtime.encode(["a"])
    with pytest.raises(ConnectionRefusedError):
        runtime.encode(["a"])

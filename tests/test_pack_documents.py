"""pack: corpora to a tokens directory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from zhllama.artifact import fingerprint, read_record
from zhllama.cli import main
from zhllama.config import UserError
from zhllama.corpus.read import Corpus, list_files
from zhllama.pack.blocks import Blocks
from zhllama.pack.documents import PackConfig, pack
from zhllama.tokenizer.load import load


def write_corpus(file: Path, documents: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return file


def parts_of(blocks: Blocks) -> list[list[int]]:
    """The pieces of documents, block after block, without padding."""
    parts = []
    for index in range(len(blocks)):
        lengths = blocks.lengths[blocks.offsets[index] : blocks.offsets[index + 1]]
        parts += np.split(np.asarray(blocks.ids[index]), np.cumsum(lengths))[:-1]
    return [part.tolist() for part in parts]


@pytest.fixture
def english(tmp_path: Path, english_text: str) -> Path:
    return write_corpus(tmp_path / "english.jsonl", english_text[:40_000].split("\n\n"))


def packed(tmp_path: Path, model: Path, *corpora: Path, **settings: Any) -> tuple[Blocks, dict[str, Any]]:
    """The blocks and the record's result."""
    settings = {"block_size": 64, "output": str(tmp_path / "t")} | settings
    pack(PackConfig([str(corpus) for corpus in corpora], str(model), **settings))
    return Blocks.open(Path(settings["output"])), read_record(settings["output"])["result"]


def test_documents_come_back_with_newlines_and_eos(
    tmp_path: Path, extended_models: dict[str, Path], kind: str
) -> None:
    documents = ["第一段。\n\n第二段，　全角空格。\n\t缩进", "Second document\nwith  two spaces\n"]
    corpus = write_corpus(tmp_path / "c.jsonl", documents)
    blocks, result = packed(tmp_path, extended_models[kind], corpus, block_size=40)
    tokenizer = AutoTokenizer.from_pretrained(str(extended_models[kind]))
    parts = parts_of(blocks)
    assert [part[-1] for part in parts] == [tokenizer.eos_token_id] * 2
    assert sorted(tokenizer.decode(part, skip_special_tokens=True) for part in parts) == sorted(documents)
    gaps = [blocks.ids[block, len(part) :].tolist() for block, part in enumerate(parts)]
    assert [set(gap) for gap in gaps] == [{tokenizer.pad_token_id}] * 2
    assert (result["documents"], result["tokens"]) == (2, sum(map(len, parts)))


def test_every_token_of_every_document_is_there_once(
    extended_models: dict[str, Path], token_dirs: dict[str, Path], corpus_file: Path, kind: str
) -> None:
    tokenizer = load(extended_models[kind])
    texts = [json.loads(line)["text"] for line in corpus_file.read_text().splitlines()]
    wanted = [[*tokenizer.fast.encode(text).ids, tokenizer.eos_id()] for text in texts]
    parts = parts_of(Blocks.open(token_dirs[kind]))
    assert sorted(token for part in parts for token in part) == sorted(t for ids in wanted for t in ids)
    for ids in wanted:
        assert all(ids[at : at + 64] in parts for at in range(0, len(ids) - 63, 64))
    assert sum(part[-1] == tokenizer.eos_id() for part in parts) == len(texts)


def test_what_datasets_saved_and_streams_is_packed_and_recorded(
    tmp_path: Path, extended_models: dict[str, Path], english: Path
) -> None:
    datasets.disable_progress_bars()
    chinese = [{"text": f"第{number}篇文章，说的是天气。" * 9} for number in range(30)]
    datasets.Dataset.from_list(chinese).save_to_disk(tmp_path / "saved")
    (tmp_path / "name").mkdir()  # stands for one of a hub
    english.rename(tmp_path / "name" / "train.jsonl")
    replay = f"hf:{tmp_path}/name"
    model = extended_models["bytelevel"]
    _, result = packed(tmp_path, model, tmp_path / "saved", replay=replay, replay_share=0.3)
    plain = write_corpus(tmp_path / "c.jsonl", [row["text"] for row in chinese])
    again = {"output": str(tmp_path / "again"), "replay": str(tmp_path / "name"), "replay_share": 0.3}
    _, same = packed(tmp_path, model, plain, **again)
    assert result["fingerprint"] == same["fingerprint"]
    assert result["sources"][0]["documents"] == 30
    inputs = read_record(tmp_path / "t")["inputs"]
    assert inputs["replay"] == {"path": replay, "fingerprint": fingerprint(replay)}
    assert inputs["corpus"]["fingerprint"] == fingerprint(tmp_path / "saved")


@pytest.mark.parametrize("threads", [1, 2])
def test_same_input_gives_the_same_bytes(
    tmp_path: Path,
    extended_models: dict[str, Path],
    token_dirs: dict[str, Path],
    corpus_file: Path,
    kind: str,
    threads: int,
) -> None:
    packed(tmp_path, extended_models[kind], corpus_file, threads=threads)
    assert fingerprint(tmp_path / "t") == fingerprint(token_dirs[kind])
    names = {file.name for file in (tmp_path / "t").iterdir()}
    assert names == {"run.json", "ids.npy", "lengths.npy", "offsets.npy"}


def test_the_record_says_what_is_inside(
    extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str
) -> None:
    result = read_record(token_dirs[kind])["result"]
    blocks = Blocks.open(token_dirs[kind])
    assert result["tokenizer"] == fingerprint(extended_models[kind] / "tokenizer.json")
    assert (result["blocks"], result["tokens"]) == (len(blocks), blocks.lengths.sum())
    assert result["padding"] == pytest.approx(1 - blocks.lengths.sum() / (len(blocks) * 64))
    assert result["padding"] < 0.01
    assert (result["documents"], result["replay_blocks"]) == (60, 0)
    [source] = result["sources"]
    assert (source["documents"], source["tokens"], source["share"], source["epochs"]) == (
        60,
        result["tokens"],
        1.0,
        1.0,
    )


def test_weights_are_shares_and_the_table_says_so(
    tmp_path: Path,
    extended_models: dict[str, Path],
    corpus_file: Path,
    english: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--corpus", corpus_file, "--weight", 3, "--corpus", english, "--weight", 1, "--block-size", 64]
    main(["pack", *map(str, [*flags, "--model", extended_models[kind], "--output", tmp_path / "t"])])
    record = read_record(tmp_path / "t")
    chinese, other = record["result"]["sources"]
    assert chinese["share"] == pytest.approx(0.75, abs=0.001)
    assert chinese["share"] + other["share"] == pytest.approx(1)
    assert chinese["tokens"] / record["result"]["tokens"] == pytest.approx(0.75, abs=0.01)
    assert min(chinese["epochs"], other["epochs"]) == pytest.approx(1, abs=0.01)
    assert set(record["inputs"]) == {"model", "corpus", "corpus 2"}
    said = capsys.readouterr().out
    assert "75.00%" in said
    assert str(english) in said


@pytest.fixture
def kinds(tmp_path: Path, corpus_file: Path, english: Path) -> Path:
    """A cleaned corpus with two kinds, and one document of none."""
    for name, file in (("books/a.jsonl", corpus_file), ("code/b.jsonl", english)):
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        (tmp_path / "raw" / name).write_bytes(file.read_bytes())
    (tmp_path / "raw" / "c.txt").write_text(
        "这里只有一篇没有分类的文章，它放在任何文件夹之外。", encoding="utf-8"
    )
    flags = ["--languages", "any", "--near-duplicates", "false", "--max-repetition", "1", "--workers", "1"]
    main(["clean", "--corpus", str(tmp_path / "raw"), "--output", str(tmp_path / "kinds"), *flags])
    return tmp_path / "kinds"


def test_kinds_have_their_shares(
    tmp_path: Path,
    extended_models: dict[str, Path],
    kinds: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares = {"books": 0.2, "code": 0.6}
    _, result = packed(tmp_path, extended_models[kind], kinds, shares=shares, max_epochs=2)
    books, code = result["sources"]
    assert (books["source"], code["source"]) == ("books", "code")
    assert books["share"] == pytest.approx(0.25, abs=0.01)
    assert max(books["epochs"], code["epochs"]) <= 2
    assert books["documents"] + code["documents"] == read_record(kinds)["result"]["documents"] - 1
    assert "left out 1 documents of the kind other" in capsys.readouterr().err


def test_kinds_are_read_once(
    tmp_path: Path, extended_models: dict[str, Path], kinds: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def files(corpus: Corpus) -> list[Path]:
        read.append(corpus.path)
        return list_files(corpus)

    monkeypatch.setattr("zhllama.corpus.kinds.list_files", files)
    packed(
        tmp_path, extended_models[kind], kinds, shares={"books": 0.2, "code": 0.6, "other": 0.2}, block_size=8
    )
    assert read == [kinds]


def test_kinds_that_cannot_be_told_or_are_not_there(
    tmp_path: Path, corpus_file: Path, bytelevel_model_dir: Path, kinds: Path
) -> None:
    with pytest.raises(
        UserError, match="--shares web: the corpora hold no document of this kind, only books, code"
    ):
        packed(tmp_path, bytelevel_model_dir, kinds, shares={"web": 1.0})
    with pytest.raises(UserError, match="does not say of what kind its documents are; clean it first"):
        packed(tmp_path, bytelevel_model_dir, corpus_file, shares={"web": 1.0})


def test_replay_has_its_share_and_keeps_each_blocks_documents(
    tmp_path: Path, extended_models: dict[str, Path], corpus_file: Path, english: Path, kind: str
) -> None:
    blocks, result = packed(
        tmp_path, extended_models[kind], corpus_file, replay=str(english), replay_share=0.2
    )
    main_blocks = result["blocks"] - result["replay_blocks"]
    assert result["replay_blocks"] == round(main_blocks * 0.25)
    assert result["sources"][0]["epochs"] == 1
    eos = load(extended_models[kind]).eos_id()
    for index in range(len(blocks)):
        used = int(blocks.lengths[blocks.offsets[index] : blocks.offsets[index + 1]].sum())
        block = blocks[index]
        restarts = torch.nonzero(block["position_ids"][:used] == 0).flatten().tolist()
        after_eos = torch.nonzero(block["input_ids"][: used - 1] == eos).flatten() + 1
        assert {0, *after_eos.tolist()} <= set(restarts)
        assert (block["labels"][used:] == -100).all()


def test_replay_that_falls_short_says_so(
    tmp_path: Path,
    extended_models: dict[str, Path],
    corpus_file: Path,
    english_text: str,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = write_corpus(tmp_path / "few.jsonl", [english_text[:1000]])
    _, result = packed(tmp_path, extended_models[kind], corpus_file, replay=str(few), max_epochs=2)
    assert result["sources"][1]["epochs"] == 2
    assert f"--replay {few}: 2 times over it makes" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["corpus", "replay"])
def test_less_text_than_a_block(
    tmp_path: Path, extended_models: dict[str, Path], corpus_file: Path, kind: str, flag: str
) -> None:
    short = write_corpus(tmp_path / "c.jsonl", ["short"])
    corpora = {"corpus": corpus_file, "replay": corpus_file} | {flag: short}
    with pytest.raises(
        UserError, match=rf"--{flag}: only \d tokens of text, less than one block; lower --block"
    ):
        packed(tmp_path, extended_models[kind], corpora["corpus"], replay=str(corpora["replay"]))
    assert not (tmp_path / "t").exists()


def test_block_above_the_models_positions(
    tmp_path: Path, extended_models: dict[str, Path], corpus_file: Path, kind: str
) -> None:
    with pytest.raises(UserError, match=r"block_size 513: .* has 512 positions; use at most that"):
        packed(tmp_path, extended_models[kind], corpus_file, block_size=513)


def test_model_without_config(tmp_path: Path, corpus_file: Path, bytelevel_base: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json inside; a Hugging Face model directory is needed"):
        packed(tmp_path, bytelevel_base, corpus_file)
    assert not (tmp_path / "t").exists()


def test_torch_is_not_imported(tmp_path: Path, bytelevel_model_dir: Path, corpus_file: Path) -> None:
    arguments = ["--corpus", corpus_file, "--model", bytelevel_model_dir, "--output", tmp_path / "t"]
    command = [sys.executable, "-X", "importtime", "-m", "zhllama", "pack", "--block-size", "64", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "zhllama.pack.mixture" in imported
    assert "torch" not in imported  # seconds, which small corpora would feel


def test_a_finished_directory_is_not_written_again(
    extended_models: dict[str, Path], token_dirs: dict[str, Path], corpus_file: Path, kind: str
) -> None:
    with pytest.raises(UserError, match="already holds a run of pack; choose another directory"):
        packed(token_dirs[kind], extended_models[kind], corpus_file, output=str(token_dirs[kind]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 7}, "block_size 7: it must be at least 8"),
        ({"replay_share": 1.0}, "replay_share 1.0: it must be at least 0 and below 1"),
        ({"replay_share": -0.1}, "replay_share -0.1: it must be"),
        ({"max_epochs": 0.5}, "max_epochs 0.5: it must be at least 1"),
        ({"max_epochs": float("inf")}, "max_epochs inf: it must be at least 1"),
        ({"threads": -1}, "threads -1: it must be at least 0"),
        ({"corpus": []}, "--corpus: give at least one corpus directory or file"),
        ({"corpus": ["c", "c"]}, "--corpus c: given twice; give it more weight with --weight"),
        ({"weight": [1.0, 2.0]}, "--weight: 2 given for 1 corpora; give one for each"),
        ({"weight": [0.0]}, "--weight 0.0: it must be more than 0"),
        ({"shares": {"web": 0.0}}, "shares 0.0: it must be more than 0"),
        ({"shares": {"web": 1.0}, "weight": [1.0]}, "shares and weight: give one of them"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackConfig(**({"corpus": ["c"], "model": "m", "output": "o"} | settings))


@pytest.mark.parametrize("flag", ["corpus", "model", "replay"])
def test_missing_input(tmp_path: Path, corpus_file: Path, bytelevel_model_dir: Path, flag: str) -> None:
    paths = {"corpus": corpus_file, "model": bytelevel_model_dir, "replay": corpus_file}
    paths[flag] = tmp_path / "none"
    with pytest.raises(UserError, match=rf"--{flag} .*none: no such file or directory"):
        packed(tmp_path, paths["model"], paths["corpus"], replay=str(paths["replay"]))

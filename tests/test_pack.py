"""pack: documents and conversations to blocks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from zhllama.artifact import fingerprint, read_record
from zhllama.cli import main
from zhllama.config import UserError
from zhllama.pack import (
    Blocks,
    PackConfig,
    encode_documents,
    interleave,
    pack,
    pack_conversations,
    pack_documents,
)
from zhllama.tokenizer.load import Loaded, load


def stream(blocks: Blocks) -> list[int]:
    return np.asarray(blocks.ids).reshape(-1).tolist()


def write_corpus(file: Path, documents: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents))
    return file


def numbered(count: int, size: int, first: int = 0) -> Blocks:
    """Blocks of one document each, filled with their number."""
    ids = np.repeat(np.arange(first, first + count, dtype=np.uint16)[:, None], size, axis=1)
    return Blocks(ids, np.full(count, size, dtype=np.int32), np.arange(count + 1))


def words_tokenizer(size: int) -> Loaded:
    """A tokenizer with a vocabulary of this size, whose words are numbers."""
    vocabulary = {str(number): number for number in range(size)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    return Loaded("bytelevel", fast, None, {}, None, "1", None, "0", None, Path(), Path())


def test_documents_come_back_with_newlines_and_eos(
    tmp_path: Path, extended_models: dict[str, Path], kind: str
) -> None:
    documents = [
        "第一段。\n\n第二段，　全角空格。\n\t缩进",
        "Second document\nwith  two spaces\n",
        "好" * 40,
    ]
    corpus = write_corpus(tmp_path / "c.jsonl", documents)
    pack(PackConfig(str(corpus), str(extended_models[kind]), str(tmp_path / "t"), block_size=8))
    tokenizer = AutoTokenizer.from_pretrained(str(extended_models[kind]))
    ids = stream(Blocks.open(tmp_path / "t"))
    ends = [at for at, token in enumerate(ids) if token == tokenizer.eos_token_id]
    starts = [0, *(end + 1 for end in ends)]
    read = [
        tokenizer.decode(ids[start:end], skip_special_tokens=True)
        for start, end in zip(starts, [*ends, len(ids)], strict=True)
    ]
    assert read[:2] == documents[:2]
    assert set(read[2]) == {"好"}
    assert read_record(tmp_path / "t")["result"]["documents"] == len(ends) == 2


def test_same_input_gives_the_same_bytes(
    tmp_path: Path,
    extended_models: dict[str, Path],
    token_dirs: dict[str, Path],
    corpus_file: Path,
    kind: str,
) -> None:
    pack(PackConfig(str(corpus_file), str(extended_models[kind]), str(tmp_path / "t"), block_size=64))
    assert fingerprint(tmp_path / "t") == fingerprint(token_dirs[kind])


def test_blocks_are_the_documents_one_after_the_other(
    extended_models: dict[str, Path], token_dirs: dict[str, Path], corpus_file: Path, kind: str
) -> None:
    blocks = Blocks.open(token_dirs[kind])
    tokenizer = load(extended_models[kind])
    texts = [json.loads(line)["text"] for line in corpus_file.read_text().splitlines()]
    whole = [token for text in texts for token in [*tokenizer.fast.encode(text).ids, tokenizer.eos_id()]]
    assert stream(blocks) == whole[: len(whole) // 64 * 64]
    assert len(whole) // 64 == len(blocks) > 500


def test_the_record_says_what_is_inside(
    extended_models: dict[str, Path], token_dirs: dict[str, Path], kind: str
) -> None:
    result = read_record(token_dirs[kind])["result"]
    blocks = Blocks.open(token_dirs[kind])
    assert result["tokenizer"] == fingerprint(extended_models[kind] / "tokenizer.json")
    assert (result["blocks"], result["tokens"]) == (len(blocks), len(blocks) * 64)
    assert result["documents"] == 60 - (stream(blocks)[-1] != load(extended_models[kind]).eos_id())
    assert result["replay_blocks"] == 0


def test_positions_restart_with_documents_and_blocks() -> None:
    tokenizer = words_tokenizer(10)
    documents = ["5", "6", "7"]  # each is two tokens with its EOS
    blocks = pack_documents([*documents, "8"], tokenizer, 5, "--corpus")
    assert stream(blocks) == [5, 1, 6, 1, 7]
    assert blocks[0]["position_ids"].tolist() == [0, 1, 0, 1, 0]
    assert blocks[0]["labels"].tolist() == [-100, 1, -100, 1, -100]
    longer = pack_documents([*documents, *documents], tokenizer, 5, "--corpus")
    assert [longer[i]["position_ids"].tolist() for i in range(2)] == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 1]]
    assert longer[1]["input_ids"].tolist() == [1, 5, 1, 6, 1]


def test_lengths_fill_every_block(token_dirs: dict[str, Path], kind: str) -> None:
    blocks = Blocks.open(token_dirs[kind])
    assert blocks.offsets[0] == 0
    assert blocks.offsets[-1] == len(blocks.lengths)
    assert all(
        blocks.lengths[start:end].sum() == 64
        for start, end in zip(blocks.offsets[:-1], blocks.offsets[1:], strict=True)
    )
    assert (blocks.lengths > 0).all()


def test_a_block_as_tensors(token_dirs: dict[str, Path], kind: str) -> None:
    block = Blocks.open(token_dirs[kind])[3]
    assert list(block) == ["input_ids", "position_ids", "labels"]
    assert {(tensor.shape, tensor.dtype) for tensor in block.values()} == {((64,), torch.int64)}


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_dtype_holds_every_id(size: int, dtype: type) -> None:
    blocks = pack_documents([str(size - 1)] * 4, words_tokenizer(size), 8, "--corpus")
    assert blocks.ids.dtype == dtype
    assert blocks.ids[0, 0] == size - 1


def test_special_names_in_text_stay_text(extended_models: dict[str, Path], kind: str) -> None:
    tokenizer = load(extended_models[kind])
    text = f"a{tokenizer.eos}b{tokenizer.pad}c"
    [ids] = encode_documents([text], tokenizer)
    assert ids.count(tokenizer.eos_id()) == 1
    assert ids[-1] == tokenizer.eos_id()
    assert tokenizer.id_of(str(tokenizer.pad)) not in ids
    assert text in tokenizer.fast.decode(ids[:-1], skip_special_tokens=False)
    assert tokenizer.fast.encode_special_tokens is False  # as it was


@pytest.mark.parametrize(("share", "wanted"), [(0.25, 10), (0.1, 3), (0.5, 30), (0.0, 0)])
def test_replay_has_its_share_and_is_spread(share: float, wanted: int) -> None:
    mixed = interleave(numbered(30, 4), numbered(50, 4, first=100), share)
    numbers = mixed.ids[:, 0].tolist()
    assert [number for number in numbers if number < 100] == list(range(30))
    assert [number for number in numbers if number >= 100] == list(range(100, 100 + wanted))
    places = [at for at, number in enumerate(numbers) if number >= 100]
    gaps = np.diff([-1, *places, len(numbers)])
    assert wanted == 0 or gaps.max() <= 1.5 * len(numbers) / wanted + 1
    assert mixed.offsets.tolist() == list(range(31 + wanted))


def test_replay_is_used_as_far_as_it_goes() -> None:
    assert len(interleave(numbered(30, 4), numbered(5, 4), 0.5)) == 35


def test_replay_keeps_each_blocks_documents(
    tmp_path: Path, extended_models: dict[str, Path], corpus_file: Path, english_text: str, kind: str
) -> None:
    english = write_corpus(tmp_path / "e.jsonl", english_text[:40_000].split("\n\n"))
    arguments = ["--corpus", corpus_file, "--model", extended_models[kind], "--replay", english]
    settings = ["--replay-share", "0.2", "--block-size", "64", "--output", tmp_path / "t"]
    main(["pack", *map(str, [*arguments, *settings])])
    blocks, result = Blocks.open(tmp_path / "t"), read_record(tmp_path / "t")["result"]
    assert result["replay_blocks"] == round((result["blocks"] - result["replay_blocks"]) * 0.25)
    eos = load(extended_models[kind]).eos_id()
    for block in (blocks[i] for i in range(len(blocks))):
        after_eos = torch.nonzero(block["input_ids"][:-1] == eos).flatten() + 1
        restarts = torch.nonzero(block["position_ids"] == 0).flatten()
        assert restarts.tolist() == [0, *after_eos.tolist()]


@pytest.mark.parametrize("with_loss", [False, True])
def test_saved_blocks_open_memory_mapped(tmp_path: Path, with_loss: bool) -> None:
    blocks = numbered(3, 8)
    blocks.loss = np.eye(3, 8, dtype=bool) if with_loss else None
    blocks.save(tmp_path)
    opened = Blocks.open(tmp_path)
    assert isinstance(opened.ids, np.memmap)
    assert (opened.loss is not None) == with_loss
    for i in range(3):
        assert all(torch.equal(a, b) for a, b in zip(blocks[i].values(), opened[i].values(), strict=True))


def conversations(count: int) -> list[tuple[list[int], list[bool]]]:
    """Samples of 5 to 59 tokens, numbered by their ids, the second half of each learnt."""
    lengths = np.random.default_rng(0).integers(5, 60, count).tolist()
    return [
        ([index] * length, [at >= length // 2 for at in range(length)])
        for index, length in enumerate(lengths)
    ]


def test_conversations_are_packed_whole_and_once() -> None:
    samples = conversations(300)
    blocks = pack_conversations(samples, 128, padding=999)
    seen = []
    for block in range(len(blocks)):
        at = 0
        for length in blocks.lengths[blocks.offsets[block] : blocks.offsets[block + 1]]:
            ids = blocks.ids[block, at : at + length].tolist()
            assert blocks.loss is not None
            learnt = blocks.loss[block, at : at + length].tolist()
            at += length
            if ids[0] == 999:
                assert set(ids) == {999}
                assert not any(learnt)
            else:
                assert (ids, learnt) == samples[ids[0]]
                seen.append(ids[0])
        assert at == 128
    assert sorted(seen) == list(range(300))


def test_best_fit_wastes_little() -> None:
    samples = conversations(300)
    blocks = pack_conversations(samples, 128, padding=0)
    used = sum(len(ids) for ids, _ in samples)
    assert len(blocks) == -(-used // 128)


def test_only_learnt_tokens_after_the_first_have_labels() -> None:
    blocks = pack_conversations([([4, 5, 6, 7], [True, False, True, True])], 8, padding=0)
    block = blocks[0]
    assert block["labels"].tolist() == [-100, -100, 6, 7, -100, -100, -100, -100]
    assert block["position_ids"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_less_text_than_a_block(tmp_path: Path, extended_models: dict[str, Path], kind: str) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", ["短"])
    with pytest.raises(
        UserError, match=r"--corpus: only \d tokens of text, less than one block; lower --block"
    ):
        pack(PackConfig(str(corpus), str(extended_models[kind]), str(tmp_path / "t"), block_size=64))
    assert not (tmp_path / "t").exists()


def test_less_replay_than_a_block(
    tmp_path: Path, extended_models: dict[str, Path], corpus_file: Path, kind: str
) -> None:
    replay = write_corpus(tmp_path / "c.jsonl", ["short"])
    config = PackConfig(
        str(corpus_file), str(extended_models[kind]), str(tmp_path / "t"), block_size=64, replay=str(replay)
    )
    with pytest.raises(UserError, match=r"--replay: only \d tokens of text, less than one block"):
        pack(config)
    assert not (tmp_path / "t").exists()


def test_block_above_the_models_positions(
    tmp_path: Path, extended_models: dict[str, Path], corpus_file: Path, kind: str
) -> None:
    config = PackConfig(str(corpus_file), str(extended_models[kind]), str(tmp_path / "t"), block_size=513)
    with pytest.raises(UserError, match=r"block_size 513: .* has 512 positions; use at most that"):
        pack(config)


def test_tokenizer_without_eos(tmp_path: Path, corpus_file: Path, sentencepiece_model_dir: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (directory / name).write_bytes((sentencepiece_model_dir / name).read_bytes())
    with pytest.raises(UserError, match="the tokenizer has no EOS token"):
        pack(PackConfig(str(corpus_file), str(directory), str(tmp_path / "t"), block_size=64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 7}, "block_size 7: it must be at least 8"),
        ({"replay_share": 1.0}, "replay_share 1.0: it must be at least 0 and below 1"),
        ({"replay_share": -0.1}, "replay_share -0.1: it must be"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PackConfig("c", "m", "o", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["corpus", "model", "replay"])
def test_missing_input(tmp_path: Path, corpus_file: Path, bytelevel_model_dir: Path, flag: str) -> None:
    paths = {"corpus": corpus_file, "model": bytelevel_model_dir, "replay": corpus_file}
    paths[flag] = tmp_path / "none"
    given = {name: str(path) for name, path in paths.items()}
    with pytest.raises(UserError, match=rf"--{flag} .*none: no such file or directory"):
        pack(PackConfig(output=str(tmp_path / "t"), **given))

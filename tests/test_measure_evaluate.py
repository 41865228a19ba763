"""evaluate: bits per byte by hand, every byte counted, adapters as good as merged models."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.model.adapter import Parts
from zhllama.model.bits import measure
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import load_trainable
from zhllama.tokenizer.load import load

DOCUMENTS = [
    "今天天气很好。\n我们去公园散步。",
    "The capital of China is Beijing.\n",
    "新年讲话</s>1998",
    "𠮷é\t!",
]


def write_corpus(file: Path, documents: list[str]) -> Path:
    rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    file.write_text("".join(rows), encoding="utf-8")
    return file


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "text.jsonl", DOCUMENTS)


def measured(model: Path, file: Path, block_size: int = 64, max_bytes: int = 0) -> dict[str, float]:
    """In float32, whatever the machine prefers."""
    whole = load_trainable(ModelDirectory.open(model), Parts(), torch.float32, "cpu")
    return measure(whole, load(model), file, block_size, max_bytes)


def by_hand(directory: Path, documents: list[str], block_size: int) -> float:
    """Nats of all documents: plain transformers, one window at a time."""
    model = AutoModelForCausalLM.from_pretrained(str(directory))
    tokenizer = AutoTokenizer.from_pretrained(str(directory), split_special_tokens=True)
    start = tokenizer.bos_token_id if tokenizer("")["input_ids"] else tokenizer.eos_token_id
    total = 0.0
    for document in documents:
        ids = [start, *tokenizer(document, add_special_tokens=False)["input_ids"]]
        assert tokenizer.decode(ids[1:]).strip() == document.strip()
        while len(ids) > 1:
            window = torch.tensor([ids[:block_size]])
            with torch.no_grad():
                chances = model(window).logits.log_softmax(-1)[0, :-1]
            total -= chances.gather(1, window[0, 1:, None]).sum().item()
            ids = ids[block_size - 1 :]
    return total


@pytest.mark.parametrize("block_size", [8, 64])
def test_bits_per_byte_by_hand(
    text: Path, extended_models: dict[str, Path], kind: str, block_size: int
) -> None:
    report = measured(extended_models[kind], text, block_size)
    size = sum(len(document.encode()) for document in DOCUMENTS)
    nats = by_hand(extended_models[kind], DOCUMENTS, block_size)
    assert report["bytes"] == size
    assert report["bits per byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    characters = sum(map(len, DOCUMENTS))
    assert report["bits per character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-5)
    tokens = characters / report["characters per token"]
    assert tokens == pytest.approx(sum(len(load(extended_models[kind]).encode_text(d)) for d in DOCUMENTS))
    assert report["loss per token"] == pytest.approx(nats / tokens, rel=1e-5)


def test_a_model_that_knows_nothing_pays_for_every_token(
    tmp_path: Path, text: Path, extended_models: dict[str, Path], kind: str
) -> None:
    """With a head of zeros each token costs log2(rows) bits, so the total counts the tokens."""
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(extended_models[kind], tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    for name in ("lm_head.weight", "model.norm.weight"):
        if name in tensors:
            tensors[name].zero_()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    rows = len(tensors["model.embed_tokens.weight"])
    for block_size in (8, 13, 64):
        assert measured(model, text, block_size)["loss per token"] == pytest.approx(math.log(rows), rel=1e-5)


def test_block_size_does_not_matter_to_shorter_documents(
    text: Path, extended_models: dict[str, Path], kind: str
) -> None:
    values = [measured(extended_models[kind], text, size)["bits per byte"] for size in (80, 128, 512)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_whole_documents_until_enough_bytes(text: Path, extended_models: dict[str, Path], kind: str) -> None:
    sizes = [len(document.encode()) for document in DOCUMENTS]
    for limit, expected in ((1, sizes[0]), (sizes[0], sizes[0]), (sizes[0] + 1, sum(sizes[:2]))):
        assert measured(extended_models[kind], text, max_bytes=limit)["bytes"] == expected


def flags_of(output: Path, *flags: object) -> list[str]:
    return ["evaluate", "--output", str(output), "--block-size", "64", *map(str, flags)]


def report_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return content


def test_an_adapter_measures_like_the_merged_model(
    tmp_path: Path, text: Path, run_dirs: dict[str, Path], kind: str
) -> None:
    main(["merge-adapter", "--adapter", str(run_dirs[kind]), "--output", str(tmp_path / "merged")])
    main(flags_of(tmp_path / "a", "--adapter", run_dirs[kind], "--text", f"x={text}"))
    main(flags_of(tmp_path / "m", "--model", tmp_path / "merged", "--text", f"x={text}"))
    base = read_record(run_dirs[kind])["inputs"]["model"]["path"]
    main(flags_of(tmp_path / "b", "--model", base, "--text", f"x={text}"))
    adapter, merged, before = (report_of(tmp_path / name)["x"]["bits per byte"] for name in "amb")
    assert adapter == pytest.approx(merged, rel=1e-3)
    assert abs(before - adapter) > 5 * abs(adapter - merged)


def test_every_kind_of_adapter_is_measured(
    tmp_path: Path,
    text: Path,
    extended_models: dict[str, Path],
    token_dirs: dict[str, Path],
    toy: list[str],
    kind: str,
) -> None:
    inputs = ["--model", str(extended_models[kind]), "--tokens", str(token_dirs[kind])]
    quick = ["--train.max-steps", "2", "--train.learning-rate", "1e-2", "--embeddings", "all", *toy]
    main(["pretrain", *inputs, "--output", str(tmp_path / "r"), *quick])
    main(["merge-adapter", "--adapter", str(tmp_path / "r"), "--output", str(tmp_path / "merged")])
    main(flags_of(tmp_path / "a", "--adapter", tmp_path / "r", "--text", f"x={text}"))
    main(flags_of(tmp_path / "m", "--model", tmp_path / "merged", "--text", f"x={text}"))
    adapter, merged = (report_of(tmp_path / name)["x"]["bits per byte"] for name in "am")
    assert adapter == pytest.approx(merged, rel=1e-3)


def test_the_report_and_the_record(
    tmp_path: Path, text: Path, extended_models: dict[str, Path], kind: str
) -> None:
    other = write_corpus(tmp_path / "b.jsonl", ["另一篇。"])
    names = ["--text", f"model={text}", "--text", f"adapter={other}"]  # names that are settings too
    main(flags_of(tmp_path / "r", "--model", extended_models[kind], *names))
    report, record = report_of(tmp_path / "r"), read_record(tmp_path / "r")
    assert list(report) == ["model", "adapter"]
    assert report["model"]["bytes"] == sum(len(document.encode()) for document in DOCUMENTS)
    assert record["inputs"].keys() == {"text model", "text adapter", "model"}
    assert record["result"]["adapter"] == pytest.approx(report["adapter"]["bits per byte"], abs=1e-5)
    assert "bits per byte" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text", "x={text}"], "--model or --adapter: give one of them"),
        (["--model", "{model}"], "--text: give at least one name=FILE"),
        (["--model", "{model}", "--text", "x"], "--text x: write it as name=FILE"),
        (["--model", "{model}", "--text", "x=none.txt"], "no such file: none.txt"),
        (
            ["--model", "{model}", "--text", "x={text}", "--text", "x={text}"],
            "--text x=...: given twice; give each file a name of its own",
        ),
        (["--model", "{model}", "--text", "x={text}", "--block-size", "7"], "it must be at least 8"),
        (["--model", "{model}", "--text", "x={text}", "--block-size", "513"], "has 512 positions"),
        (["--model", "{run}", "--text", "x={text}"], "this is a run directory (made by pretrain)"),
        (["--adapter", "{model}", "--text", "x={text}"], "this is a model directory (made by resize"),
        (
            ["--adapter", "{foreign}", "--text", "x={text}"],
            "no finished adapter inside; give the --output of",
        ),
        (["--adapter", "{run}", "--model", "{base}", "--text", "x={text}"], "give the model it was trained"),
        (["--model", "{model}", "--text", "x={empty}"], "empty.txt"),
    ],
)
def test_refusals(
    tmp_path: Path,
    text: Path,
    extended_models: dict[str, Path],
    model_dirs: dict[str, Path],
    run_dirs: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    kind = "bytelevel"
    (tmp_path / "empty.txt").touch()
    (tmp_path / "foreign").mkdir()
    paths = {"text": text, "empty": tmp_path / "empty.txt", "foreign": tmp_path / "foreign"}
    paths |= {"model": extended_models[kind], "base": model_dirs[kind], "run": run_dirs[kind]}
    with pytest.raises(SystemExit) as stop:
        main(flags_of(tmp_path / "r", *(flag.format(**paths) for flag in flags)))
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert message in problem
    assert problem.count("\n") == 1
    assert not (tmp_path / "r").exists()

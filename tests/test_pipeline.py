"""The whole chain of commands, in process on both kinds of base and through the two launchers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from zhllama.artifact import fingerprint, read_record
from zhllama.cli import main
from zhllama.corpus.read import read_documents
from zhllama.pack.blocks import Blocks
from zhllama.train.checkpoint import SEAL
from zhllama.train.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
INSTRUCTIONS = [{"instruction": f"{n}加{n}等于几？", "output": f"等于{n + n}。"} for n in range(30)]


def command(name: str, output: Path, *flags: object, **paths: Path) -> Path:
    """Run a command in process; keyword arguments are its inputs."""
    inputs = [word for flag, path in paths.items() for word in (f"--{flag}", str(path))]
    main([name, *inputs, "--output", str(output), *map(str, flags)])
    return output


def mistral_llama(directory: Path, model: Path) -> Path:
    """A random 2-layer LLaMA, untied, on the real 32,000-piece tokenizer, as LLaMA-1 and 2 were published."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=32_000, max_position_embeddings=256, pad_token_id=None, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory)
    shutil.copyfile(model, directory / "tokenizer.model")
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {**roles, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write_rows(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def write_texts(folder: Path, chinese: str, english: str) -> None:
    """Raw Chinese and English, documents between blank lines, and a held-out Chinese file."""
    lines = chinese.splitlines()
    documents = ["\n".join(lines[at : at + 5]) for at in range(0, len(lines), 5)]
    (folder / "raw.txt").write_text("\n\n".join(documents[:-20]), encoding="utf-8")
    write_rows(folder / "held-out.jsonl", [{"text": document} for document in documents[-20:]])
    write_rows(folder / "english.jsonl", [{"text": part} for part in english[:60_000].split("\n\n\n")])


@pytest.fixture(scope="module", params=["sentencepiece", "bytelevel"])
def work(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    chinese_text: str,
    english_text: str,
    toy: list[str],
) -> Path:
    """Steps 1 to 10 on one kind of base; each directory has the name of what it holds."""
    at = tmp_path_factory.mktemp(request.param)
    if request.param == "sentencepiece":
        mistral_llama(at / "base", request.getfixturevalue("mistral_model"))
    else:
        shutil.copytree(request.getfixturevalue("bytelevel_model_dir"), at / "base")
    write_texts(at, chinese_text, english_text)
    write_rows(at / "instructions.jsonl", INSTRUCTIONS)
    write_rows(at / "prompts.jsonl", [{"instruction": "1加1等于几？"}, {"instruction": "你好"}])
    before = hashes(at)
    command("clean", at / "corpus", "--workers", 1, corpus=at / "raw.txt")
    sizes = ["--size", 1200, "--threads", 1]
    command("train-tokenizer", at / "pieces", *sizes, corpus=at / "corpus", base=at / "base")
    command("merge-tokenizer", at / "tokenizer", base=at / "base", chinese=at / "pieces")
    command("resize-embeddings", at / "extended", model=at / "base", tokenizer=at / "tokenizer")
    packing = ["--block-size", 64, "--replay-share", 0.1]
    command(
        "pack",
        at / "tokens",
        *packing,
        corpus=at / "corpus",
        model=at / "extended",
        replay=at / "english.jsonl",
    )
    quick = ["--train.learning-rate", "1e-2", "--train.max-steps", 15, "--train.save-strategy", "no", *toy]
    quick += [
        "--train.lr-scheduler-type",
        "linear",
        "--train.warmup-steps",
        0,
    ]  # so few steps need all of the rate
    command("pretrain", at / "pretrained", *quick, model=at / "extended", tokens=at / "tokens")
    command("merge-adapter", at / "merged", adapter=at / "pretrained")
    data = json.dumps([{"file": str(at / "instructions.jsonl")}])
    tuning = [*quick, "--train.max-steps", 40, "--data", data, "--block-size", 128]
    command("sft", at / "tuned", *tuning, model=at / "merged")
    command("merge-adapter", at / "final", adapter=at / "tuned")
    text = ["--text", f"chinese={at / 'held-out.jsonl'}", "--block-size", 64]
    for model in ("extended", "merged", "final"):
        command("evaluate", at / f"report-{model}", *text, model=at / model)
    command("chat", at / "answers", "--max-new-tokens", 5, model=at / "final", input=at / "prompts.jsonl")
    command("export", at / "export", model=at / "final")
    assert hashes(at) | before == hashes(at)  # what commands read stays as it is
    return at


def hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): fingerprint(file) for file in folder.rglob("*") if file.is_file()}


def rows_of(directory: Path, key: str) -> torch.Tensor:
    tensors = load_file(directory / "model.safetensors")
    return tensors[key if key in tensors else "model.embed_tokens.weight"]


def test_every_directory_is_finished_and_names_what_it_was_made_from(work: Path) -> None:
    records = {file.parent: json.loads(file.read_text()) for file in work.glob("*/run.json")}
    assert len(records) == 14
    for record in records.values():
        assert "fingerprint" in record["result"]
        for made_from in record["inputs"].values():
            source = records.get(Path(made_from["path"]))
            if source:
                assert made_from["fingerprint"] == source["result"]["fingerprint"]


def test_the_corpus_keeps_newlines_inside_documents(work: Path) -> None:
    documents = list(read_documents(work / "corpus"))
    assert len(documents) > 50
    assert sum("\n" in document for document in documents) > 0.9 * len(documents)


def test_the_same_chinese_takes_fewer_tokens(work: Path) -> None:
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    text = "\n".join(read_documents(work / "held-out.jsonl"))
    if (work / "base" / "tokenizer.json").is_file():
        before = len(Tokenizer.from_file(str(work / "base" / "tokenizer.json")).encode(text).ids)
        assert len(tokenizer.encode(text).ids) < before / 2
    else:
        model = sentencepiece.SentencePieceProcessor(model_file=str(work / "base" / "tokenizer.model"))
        assert len(tokenizer.encode(text).ids) < 0.8 * len(model.encode(text))


def test_english_keeps_its_tokens(work: Path, english_text: str) -> None:
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    text = english_text[:20_000]
    if (work / "base" / "tokenizer.json").is_file():
        before = Tokenizer.from_file(str(work / "base" / "tokenizer.json")).encode(text).ids
        assert tokenizer.encode(text).ids == before
    else:
        model = sentencepiece.SentencePieceProcessor(model_file=str(work / "base" / "tokenizer.model"))
        assert tokenizer.encode(text).ids == [model.bos_id(), *model.encode(text)]


def test_old_rows_are_the_base_s_to_the_end(work: Path) -> None:
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        old = rows_of(work / "base", key)
        for name in ("extended", "merged", "final"):
            assert torch.equal(rows_of(work / name, key)[: len(old)], old)
        assert not torch.equal(rows_of(work / "extended", key), rows_of(work / "merged", key))


def test_packed_documents_decode_with_their_newlines_and_end_with_eos(work: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(work / "extended"))
    blocks = Blocks.open(work / "tokens")
    size = blocks.ids.shape[1]
    used = np.add.reduceat(blocks.lengths, blocks.offsets[:-1])
    ids = blocks.ids[np.arange(size) < used[:, None]]
    parts = [part.tolist() for part in np.split(ids, np.cumsum(blocks.lengths)[:-1])]
    ends = [part for part in parts if part[-1] == tokenizer.eos_token_id]
    assert len(ends) == (ids == tokenizer.eos_token_id).sum() > 50
    chinese, english = read_record(work / "tokens")["result"]["sources"]
    assert chinese["documents"] <= len(ends) <= chinese["documents"] + english["documents"]
    texts = [*read_documents(work / "corpus"), *read_documents(work / "english.jsonl")]
    whole = "\0".join(texts)
    read = [tokenizer.decode(part, skip_special_tokens=True).strip("�") for part in parts]
    assert all(text in whole for text in read)
    assert sum("\n" in text for text in read) > 100


def test_replay_has_its_share(work: Path) -> None:
    result = read_record(work / "tokens")["result"]
    assert result["replay_blocks"] / result["blocks"] == pytest.approx(0.1, abs=0.01)


def test_pad_is_never_eos_and_generation_stops_at_eos(work: Path) -> None:
    for name in ("extended", "merged", "final", "export"):
        tokenizer = AutoTokenizer.from_pretrained(str(work / name))
        settings = json.loads((work / name / "generation_config.json").read_text())
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        assert settings["eos_token_id"] == tokenizer.eos_token_id
        assert settings["pad_token_id"] == tokenizer.pad_token_id
        assert tokenizer.chat_template


def test_training_lowers_the_bits_per_byte_of_held_out_chinese(work: Path) -> None:
    bits = {
        name: read_record(work / f"report-{name}")["result"]["chinese"]
        for name in ("extended", "merged", "final")
    }
    assert bits["merged"] < bits["extended"]
    losses = [line["loss"] for line in read_metrics(work / "tuned" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.1
    assert bits["final"] != bits["merged"]


def test_the_loss_masks_everything_but_replies(work: Path) -> None:
    [row] = read_record(work / "tuned")["result"]["mixture"]
    assert (row["format"], row["rows"], row["dropped"]) == ("alpaca", 30, {})
    line = read_metrics(work / "tuned" / "metrics.jsonl")[0]
    assert line["tokens"] < row["tokens"] / 2


def test_chat_answers_every_prompt(work: Path) -> None:
    lines = (work / "answers" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    roles = [[message["role"] for message in json.loads(line)["messages"]] for line in lines]
    assert roles == [["user", "assistant"]] * 2


def test_the_export_opens_in_bfloat16_and_predicts_the_same(work: Path) -> None:
    exported = AutoModelForCausalLM.from_pretrained(str(work / "export"), dtype="auto")
    assert exported.dtype == torch.bfloat16
    final = AutoModelForCausalLM.from_pretrained(str(work / "final"))
    ids = torch.tensor([AutoTokenizer.from_pretrained(str(work / "export"))("今天天气很好")["input_ids"]])
    with torch.no_grad():
        chances = [model.float()(ids).logits.softmax(-1) for model in (exported, final)]
    assert (chances[0] - chances[1]).abs().sum(-1).max() < 0.05


# The launchers. Two ranks of batch 4 see what one process of batch 8 sees, so they owe the same losses.
STEPS = ["--train.max-steps", "40", "--train.save-steps", "5", "--train.learning-rate", "1e-3"]
STEPS += ["--train.warmup-steps", "0.05", "--train.lr-scheduler-type", "cosine"]


@pytest.fixture
def words(extended_models: dict[str, Path], token_dirs: dict[str, Path], toy: list[str]) -> list[str]:
    """The recipe for small models on the untied toy, but for batch and output."""
    recipe = ["--config", str(ROOT / "pretrain" / "tiny.yaml"), *toy, *STEPS]
    kind = "sentencepiece"
    return [*recipe, "--model", str(extended_models[kind]), "--tokens", str(token_dirs[kind])]


@pytest.fixture
def alone(words: list[str]) -> Callable[[Path], list[dict[str, Any]]]:
    """The same in this process, without DeepSpeed: the lines of its metrics."""

    def run(output: Path) -> list[dict[str, Any]]:
        batch = ["--train.per-device-train-batch-size", "8", "--train.deepspeed", "null"]
        main(["pretrain", *words, *batch, "--output", str(output)])
        return read_metrics(output / "metrics.jsonl")

    return run


def start(*arguments: object) -> subprocess.Popen[str]:
    """A command of the virtual environment in a process group of its own, in the project's folder."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    # a shell's background job ignores Ctrl-C, and so would what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        list(map(str, arguments)),
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def launch(words: list[str], output: Path, *flags: str) -> subprocess.Popen[str]:
    """`deepspeed pretrain/run.py` with two ranks on a port of their own."""
    ranks = ["--num_accelerators", 2, "--master_port", free_port()]
    batch = ["--train.per-device-train-batch-size", "4"]
    program = [BIN / "deepspeed", *ranks, "pretrain/run.py"]
    return start(*program, *words, *batch, "--output", output, *flags)


def outcome(process: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    """Exit code and output of a process, none of whose group outlives the test."""
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def finished(process: subprocess.Popen[str]) -> str:
    """What a process said that must succeed."""
    code, said = outcome(process, 300)
    assert code == 0, said
    return said


def interrupt(process: subprocess.Popen[str], run: Path) -> tuple[int, str]:
    """Press Ctrl-C once a run has a checkpoint, which the next may replace at once; exit code and what was said."""
    while not any(run.glob(f"checkpoint-*/{SEAL}")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    return outcome(process, 60)


def assert_close(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        assert (a["step"], a["tokens"], a["learning_rate"]) == (b["step"], b["tokens"], b["learning_rate"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)


def moments(saved: Any) -> int:
    """Numbers that Adam keeps in what a checkpoint holds of it."""
    if isinstance(saved, dict):
        mine = sum(saved[name].numel() for name in ("exp_avg", "exp_avg_sq") if name in saved)
        return mine or sum(map(moments, saved.values()))
    return sum(map(moments, saved)) if isinstance(saved, (list, tuple)) else 0


def assert_moments_are_shared(run: Path, reference: Path) -> None:
    """Each of two ranks holds half of what one process does, but for what fills up their shares."""
    whole = reference / "checkpoint-40" / "optimizer.pt"
    held = moments(torch.load(whole, weights_only=False))
    files = sorted(run.glob("checkpoint-40/global_step40/*optim_states.pt"))
    assert len(files) == 2
    for file in files:
        assert held / 2 <= moments(torch.load(file, weights_only=False)) < 0.51 * held


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_interrupted_and_started_again_equals_uninterrupted(
    tmp_path: Path, words: list[str], alone: Callable[[Path], list[dict[str, Any]]], stage: int
) -> None:
    zero = ["--train.deepspeed", f"ds_configs/zero{stage}.json"]
    output = tmp_path / "run"
    process = launch(words, output, *zero)
    code, said = interrupt(process, output)
    assert code != 0
    assert "result" not in read_record(output), said
    command = [str(word) for word in cast("list[object]", process.args)]
    port = command[command.index("--master_port") + 1]
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*"))  # 69 MB a rank that nobody would free
    shutil.copytree(output, tmp_path / "alone")
    said = finished(launch(words, output, *zero))
    assert "resuming from" in said
    assert "start afresh" not in said
    assert read_record(output)["result"]["steps"] == 40
    finished(launch(words, tmp_path / "whole", *zero))
    for mine, theirs in zip(
        *(read_metrics(run / "metrics.jsonl") for run in (output, tmp_path / "whole")), strict=True
    ):
        assert mine | {"seconds": 0} == theirs | {"seconds": 0}
    # The same checkpoint goes on with one rank and no DeepSpeed: data and schedule stay.
    lines, reference = alone(tmp_path / "alone"), alone(tmp_path / "reference")
    assert_close(read_metrics(output / "metrics.jsonl"), reference)
    assert_moments_are_shared(output, tmp_path / "reference")
    for name in ("step", "tokens", "learning_rate"):
        assert [line[name] for line in lines] == [line[name] for line in reference]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in reference], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("body", "stage"), [("prefix", 2), ("adaption", 2), ("adaption", 3), ("noise", 2)])
def test_deepspeed_trains_and_resumes_each_way(
    tmp_path: Path, words: list[str], alone: Callable[[Path], list[dict[str, Any]]], body: str, stage: int
) -> None:
    words += ["--train.max-steps", "24", "--train.deepspeed", f"ds_configs/zero{stage}.json"]
    words += {
        "noise": ["--train.neftune-noise-alpha", "5"],
        "prefix": ["--body", "prefix", "--prefix.length", "6"],
        "adaption": ["--body", "adaption", "--adaption.length", "4"],
    }[body]
    words += [] if body == "noise" else ["--embeddings", "none", "--freeze-new-rows", "true"]
    output = tmp_path / "run"
    code, _ = interrupt(launch(words, output), output)
    assert code != 0
    assert "resuming from" in finished(launch(words, output))
    finished(launch(words, tmp_path / "whole"))
    lines = read_metrics(output / "metrics.jsonl")
    for mine, theirs in zip(lines, read_metrics(tmp_path / "whole" / "metrics.jsonl"), strict=True):
        assert mine | {"seconds": 0} == theirs | {"seconds": 0}
    ours, theirs_ = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(ours[key], theirs_[key]) for key in ours | theirs_)
    if body != "noise":  # every rank draws its own
        assert_close(lines, alone(tmp_path / "reference"))


@pytest.mark.slow
def test_deepspeed_continues_an_adapter(
    tmp_path: Path, words: list[str], alone: Callable[[Path], list[dict[str, Any]]]
) -> None:
    words += ["--train.max-steps", "6"]
    alone(tmp_path / "first")
    words += ["--adapter", str(tmp_path / "first"), "--train.deepspeed", "ds_configs/zero2.json"]
    finished(launch(words, tmp_path / "run"))
    assert_close(read_metrics(tmp_path / "run" / "metrics.jsonl"), alone(tmp_path / "reference"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_other_stages_of_zero_equal_one_process(
    tmp_path: Path, words: list[str], alone: Callable[[Path], list[dict[str, Any]]], stage: int
) -> None:
    short = ["--train.max-steps", "6", "--train.deepspeed", f"ds_configs/zero{stage}.json"]
    output = tmp_path / "run"
    finished(launch(words, output, *short, "--train.activation-checkpointing", "true"))
    words += short[:2]
    assert_close(read_metrics(output / "metrics.jsonl"), alone(tmp_path / "reference"))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "reference"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_ctrl_c_leaves_the_inputs_and_an_unfinished_run_that_goes_on(
    tmp_path: Path, words: list[str], alone: Callable[[Path], list[dict[str, Any]]]
) -> None:
    words += [
        "--train.max-steps",
        "500",
    ]  # seconds of training after the first checkpoint, on a fast machine too
    inputs = [Path(words[words.index(flag) + 1]) for flag in ("--model", "--tokens")]
    before = [hashes(folder) for folder in inputs]
    batch = ["--train.per-device-train-batch-size", "8", "--train.deepspeed", "null"]
    process = start(BIN / "zhllama", "pretrain", *words, *batch, "--output", tmp_path / "run")
    code, said = interrupt(process, tmp_path / "run")
    assert code == 130, said
    assert said.endswith("interrupted; inputs are untouched, the output is marked unfinished\n")
    assert "Traceback" not in said
    assert [hashes(folder) for folder in inputs] == before
    assert "result" not in read_record(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        main(["merge-adapter", "--adapter", str(tmp_path / "run"), "--output", str(tmp_path / "m")])
    assert stop.value.code == 2
    for mine, theirs in zip(alone(tmp_path / "run"), alone(tmp_path / "reference"), strict=True):
        assert mine | {"seconds": 0} == theirs | {"seconds": 0}


@pytest.mark.slow
def test_python_sft_run(tmp_path: Path, extended_models: dict[str, Path], toy: list[str]) -> None:
    data = json.dumps([{"file": str(write_rows(tmp_path / "i.jsonl", INSTRUCTIONS))}])
    paths = ["--model", extended_models["bytelevel"], "--data", data, "--output", tmp_path / "run"]
    said = finished(start(sys.executable, "sft/run.py", "--config", "sft/tiny.yaml", *paths, *toy))
    result = read_record(tmp_path / "run")["result"]
    assert result["steps"] == len(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert f"{result['steps']} steps on 30 conversations in {result['blocks']} blocks" in said


def launch_nodes(
    launcher: str, folder: Path, words: list[str], second: Sequence[object] = ()
) -> list[subprocess.Popen[str]]:
    """The same as two machines of one rank each would, on two loopback addresses; `second` flags for the second."""
    words = [*words, "--train.per-device-train-batch-size", "4", "--output", str(folder / launcher)]
    port = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    hosts = folder / "hostfile"
    hosts.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    started = []
    for node in (0, 1):
        if launcher == "deepspeed":
            program = [BIN / "deepspeed", "--hostfile", hosts, "--no_ssh", "--node_rank", node, *port]
        else:
            program = [BIN / "torchrun", "--nnodes", 2, "--nproc_per_node", 1, "--node_rank", node, *port]
            program += ["--local_addr", f"127.0.0.{node + 1}"]
        started.append(start(*program, "pretrain/run.py", *words, *(second if node else ())))
    return started


def both_outcomes(nodes: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Exit codes and outputs of launchers, read side by side: a full pipe would hold one of them up."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(lambda node: outcome(node, seconds), nodes))


def rank_process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank below its launcher."""
    [found] = [
        child
        for child in psutil.Process(launcher.pid).children(recursive=True)
        if child.environ().get("RANK") == str(rank)
    ]
    return found


@pytest.mark.slow
def test_two_nodes_have_the_losses_of_one_and_write_nothing_but_their_output(
    tmp_path: Path, words: list[str]
) -> None:
    words += ["--train.max-steps", "6"]
    inputs = [Path(words[words.index(flag) + 1]) for flag in ("--model", "--tokens")]

    def seen() -> list[Any]:
        files = [file for folder in inputs for file in (folder, *folder.rglob("*"))]
        return [(file, file.stat().st_mtime_ns, file.is_file() and fingerprint(file)) for file in files]

    before = seen()
    finished(launch(words, tmp_path / "one"))
    one = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert len(one) == 6
    for launcher in ("deepspeed", "torchrun"):
        for code, said in both_outcomes(launch_nodes(launcher, tmp_path, words), 300):
            assert code == 0, said
        assert_close(read_metrics(tmp_path / launcher / "metrics.jsonl"), one)
        assert read_record(tmp_path / launcher)["result"]["steps"] == 6
    assert seen() == before


@pytest.mark.slow
def test_a_killed_rank_ends_the_launchers_of_every_node(tmp_path: Path, words: list[str]) -> None:
    nodes = launch_nodes("deepspeed", tmp_path, [*words, "--train.max-steps", "100000"])
    while not (tmp_path / "deepspeed" / "metrics.jsonl").exists():
        assert all(node.poll() is None for node in nodes), both_outcomes(nodes, 60)
        time.sleep(0.05)
    rank_process(nodes[1], 1).kill()
    (first, other), (second, own) = both_outcomes(nodes, 100)
    assert second != 0
    assert "exits with return code = -9" in own
    assert first != 0
    assert "error: another rank ended, and this one with it" in other
    assert "Traceback" not in own + other


@pytest.mark.slow
def test_a_rank_s_own_error_is_said_and_ends_the_others(tmp_path: Path, words: list[str]) -> None:
    nodes = launch_nodes("torchrun", tmp_path, words, ["--tokens", tmp_path / "gone"])
    (first, other), (second, own) = both_outcomes(nodes, 300)
    assert second != 0
    assert f"zhllama pretrain: error: --tokens {tmp_path / 'gone'}: no such file or directory" in own
    assert first != 0
    assert "error: another rank ended, and this one with it" in other


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["null", "ds_configs/zero3.json"], ids=["ddp", "zero3"])
def test_of_two_ranks_only_the_first_answers(
    tmp_path: Path, extended_models: dict[str, Path], toy: list[str], stage: str
) -> None:
    data = json.dumps([{"file": str(write_rows(tmp_path / "i.jsonl", INSTRUCTIONS))}])
    words = ["--model", extended_models["bytelevel"], "--data", data, "--block-size", 128, *toy]
    words += ["--train.max-steps", 3, "--train.learning-rate", "1e-2"]
    words += ["--progress.prompts", '["天空"]', "--progress.held-out", 3, "--progress.every", 2]
    words += ["--progress.endings", 3, "--progress.max-new-tokens", 6]
    ranks = ["--num_accelerators", 2, "--master_port", free_port()]
    two = [BIN / "deepspeed", *ranks, "sft/run.py", *words, "--train.deepspeed", stage]
    batch = ["--train.per-device-train-batch-size"]
    said = finished(start(*two, *batch, 2, "--output", tmp_path / "two"))
    finished(start(sys.executable, "sft/run.py", *words, *batch, 4, "--output", tmp_path / "one"))
    assert said.count("answers to held-out prompts ended") == 1
    looks = [
        [
            json.loads(line)
            for line in (tmp_path / name / "progress.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("one", "two")
    ]
    assert [look["step"] for look in looks[1]] == [0, 2, 3]
    for one, two_ranks in zip(*looks, strict=True):
        assert one["answers"] == two_ranks["answers"]
        near = 1e-2 if one["step"] else 1e-5  # the ranks' sums round otherwise, and a high rate spreads it
        assert one["held_out"] == pytest.approx(two_ranks["held_out"], abs=near)

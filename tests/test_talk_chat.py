"""Talking to a model: greedy answers, files of prompts, the terminal, and every refusal."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_conversation_prompts import put, refusal

from zhllama import artifact
from zhllama.config import UserError
from zhllama.conversation.formats import Message
from zhllama.model.directory import ModelDirectory
from zhllama.model.run_directory import RunDirectory
from zhllama.talk import chat as module
from zhllama.talk.chat import ChatConfig, Speaker, chat

QUESTION: list[Message] = [{"role": "user", "content": "中国的首都是哪里？"}]


@pytest.fixture(params=["sentencepiece", "bytelevel"])
def model(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(f"{request.param}_model_dir")
    return directory


@pytest.fixture
def speaker(bytelevel_model_dir: Path) -> Speaker:
    return speaker_of(bytelevel_model_dir, max_new_tokens=4)


def speaker_of(directory: Path, **settings: Any) -> Speaker:
    config = ChatConfig(str(directory), **settings)
    adapter = None if config.adapter is None else RunDirectory.open(config.adapter)
    return Speaker(ModelDirectory.open(directory), adapter, config)


def greedy(speaker: Speaker, prompt: str, steps: int) -> list[int]:
    """The likeliest token, step by step, without generate."""
    ids = speaker.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    for _ in range(steps):
        with torch.no_grad():
            following = speaker.model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following.reshape(1, 1)], dim=1)
    return [int(token) for token in ids[0, length:]]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"input": "x"},
            "--input and --output: give both (a file of prompts, a directory for the answers) or none",
        ),
        (
            {"output": "x"},
            "--input and --output: give both (a file of prompts, a directory for the answers) or none",
        ),
        ({"prompt": ["a"], "input": "x", "output": "y"}, "--prompt and --input: give one of them"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: it must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0: it must be at least 1"),
        ({"temperature": -0.5}, "--temperature -0.5: it must be at least 0"),
        ({"top_p": 0.0}, "--top-p 0.0: it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "--top-p 1.5: it must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty 0.0: it must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], line: str) -> None:
    assert refusal(lambda: ChatConfig("m", **settings)) == line


def test_without_temperature_the_likeliest_tokens_are_taken(model: Path) -> None:
    speaker = speaker_of(model, max_new_tokens=5, repetition_penalty=1.0)
    prompt = speaker.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    expected = greedy(speaker, prompt, 5)
    assert speaker.tokenizer.eos_token_id not in expected
    text = speaker.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert speaker.answer(QUESTION) == (text, False)


def test_an_answer_ends_at_eos(speaker: Speaker) -> None:
    prompt = speaker.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    speaker.config.repetition_penalty = 1.0
    first = greedy(speaker, prompt, 1)[0]
    speaker.ends = [first]
    assert speaker.answer(QUESTION) == ("", True)


def test_every_end_of_the_generation_config_ends_an_answer(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    directory = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    speaker = speaker_of(directory, repetition_penalty=1.0)
    prompt = speaker.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    own, first = speaker.tokenizer.eos_token_id, greedy(speaker, prompt, 1)[0]
    file = directory / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [own, first]}))
    other = speaker_of(directory, repetition_penalty=1.0)
    assert other.ends == [own, first]
    assert other.answer(QUESTION) == ("", True)


def test_a_repeated_token_is_penalised(bytelevel_model_dir: Path) -> None:
    free = speaker_of(bytelevel_model_dir, max_new_tokens=12, repetition_penalty=1.0)
    held = speaker_of(bytelevel_model_dir, max_new_tokens=12, repetition_penalty=1e6)
    replies = []
    for speaker in (free, held):
        sent: list[int] = []
        generate = speaker.model.generate

        def record(*_: Any, sent: list[int] = sent, generate: Any = generate, **options: Any) -> Any:
            output = generate(**options)
            sent += output[0, options["input_ids"].shape[1] :].tolist()
            return output

        speaker.model.generate = record
        speaker.answer(QUESTION)
        replies.append(sent)
    assert len(set(replies[1])) == len(replies[1]) == 12
    assert replies[0] != replies[1]


@pytest.mark.parametrize("body", ["lora", "prefix", "adaption"])
def test_an_adapter_answers_on_its_base(
    tmp_path: Path, extended_models: dict[str, Path], solo: Any, body: str
) -> None:
    flags = [] if body == "lora" else ["--embeddings", "none", "--freeze-new-rows", "true"]
    solo(tmp_path / "r", "--body", body, *flags, "--train.learning-rate", "3e-1")
    base = extended_models["bytelevel"]
    plain = speaker_of(base, max_new_tokens=6)
    ours = speaker_of(base, max_new_tokens=6, adapter=str(tmp_path / "r"), repetition_penalty=1.0)
    assert ours.positions == plain.positions - (30 if body == "prefix" else 0)
    prompt = ours.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    expected = ours.tokenizer.decode(greedy(ours, prompt, 6), skip_special_tokens=True).strip()
    assert ours.answer(QUESTION)[0] == expected
    ids = torch.tensor([ours.encode(QUESTION)])
    assert (ours.model(ids).logits - plain.model(ids).logits).abs().max() > 0.001


def test_an_adapter_with_a_file_of_prompts_is_recorded(
    tmp_path: Path, extended_models: dict[str, Path], run_dirs: dict[str, Path]
) -> None:
    base, run = extended_models["bytelevel"], run_dirs["bytelevel"]
    prompts = put(tmp_path, {"instruction": "问"})
    chat(ChatConfig(str(base), str(run), input=str(prompts), output=str(tmp_path / "a"), max_new_tokens=2))
    assert artifact.read_record(tmp_path / "a")["inputs"]["adapter"]["path"] == str(run)


def test_an_adapter_that_is_a_model_of_its_own_is_refused(
    tmp_path: Path, extended_models: dict[str, Path], solo: Any
) -> None:
    solo(tmp_path / "r", "--body", "full", "--train.max-steps", 1)
    problem = refusal(lambda: speaker_of(extended_models["bytelevel"], adapter=str(tmp_path / "r")))
    assert "it trained the layers in full, which is a model of its own; run zhllama merge-adapter" in problem


def test_sampling_is_repeated_by_its_seed(bytelevel_model_dir: Path) -> None:
    answers = [
        speaker_of(bytelevel_model_dir, temperature=5.0, seed=seed, max_new_tokens=8).answer(QUESTION)
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_a_system_prompt_replaces_that_of_the_conversation(bytelevel_model_dir: Path) -> None:
    speaker = speaker_of(bytelevel_model_dir, system="简短。")
    messages = [{"role": "system", "content": "冗长。"}, *QUESTION]
    assert speaker.tokenizer.decode(speaker.encode(messages)) == (
        "<|im_start|>system\n简短。<|im_end|>\n<|im_start|>user\n中国的首都是哪里？<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_a_system_prompt_the_conversation_keeps_its_own(speaker: Speaker) -> None:
    messages = [{"role": "system", "content": "冗长。"}, *QUESTION]
    assert "冗长。" in speaker.tokenizer.decode(speaker.encode(messages))


def test_an_answer_stays_within_the_models_positions(speaker: Speaker) -> None:
    length = len(speaker.encode(QUESTION))
    speaker.positions = length + 1
    sent = []
    generate = speaker.model.generate
    speaker.model.generate = lambda **options: sent.append(options["max_new_tokens"]) or generate(**options)
    speaker.answer(QUESTION)
    assert sent == [1]
    speaker.positions = length
    assert refusal(lambda: speaker.answer(QUESTION)) == (
        f"the conversation has {length} tokens and the model {length} positions; shorten it"
    )


def test_a_conversation_that_the_template_refuses_is_named(speaker: Speaker) -> None:
    speaker.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    assert refusal(lambda: speaker.answer(QUESTION)) == (
        "the chat template refuses the conversation: no system role"
    )


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        ("config.json", "no config.json inside; a Hugging Face model directory is needed"),
        ("model.safetensors", "no model.safetensors inside (only safetensors weights are read)"),
        ("tokenizer.json", "no tokenizer.json or tokenizer.model inside"),
        ("chat_template.jinja", "no chat template inside, so it cannot chat"),
    ],
)
def test_a_model_that_lacks_a_part_cannot_chat(
    tmp_path: Path, bytelevel_model_dir: Path, missing: str, line: str
) -> None:
    directory = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    (directory / missing).unlink()
    assert refusal(lambda: chat(ChatConfig(str(directory), prompt=["a"]))) == f"--model {directory}: {line}"


def test_a_pickle_is_never_loaded(tmp_path: Path, bytelevel_model_dir: Path) -> None:
    directory = shutil.copytree(bytelevel_model_dir, tmp_path / "model")
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert "only safetensors weights are read" in refusal(lambda: speaker_of(directory))


def test_a_missing_model_is_refused() -> None:
    assert refusal(lambda: chat(ChatConfig("./none"))) == "--model ./none: no such file or directory"


def test_prompts_are_answered_one_after_the_other(
    bytelevel_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(ChatConfig(str(bytelevel_model_dir), prompt=["一", "[b]二"], max_new_tokens=3))
    answers = [
        speaker_of(bytelevel_model_dir, max_new_tokens=3).answer([{"role": "user", "content": text}])[0]
        for text in ("一", "[b]二")
    ]
    assert capsys.readouterr().out == f"> 一\n{answers[0]}\n> [b]二\n{answers[1]}\n"


def test_a_file_of_prompts_becomes_a_file_of_answers(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": "翻译", "input": "hello"}, {"messages": QUESTION}]
    file, output = put(tmp_path, *rows), tmp_path / "answers"
    chat(ChatConfig(str(model), input=str(file), output=str(output), max_new_tokens=3))
    speaker = speaker_of(model, max_new_tokens=3)
    expected = []
    for messages in ([{"role": "user", "content": "翻译\nhello"}], QUESTION):
        reply, _ = speaker.answer(messages)
        answer = {"ended": "length", "tokens": 3}
        expected.append({"messages": [*messages, {"role": "assistant", "content": reply}], **answer})
    lines = (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == expected
    record = artifact.read_record(output)
    assert {name: entry["path"] for name, entry in record["inputs"].items()} == {
        "model": str(model),
        "input": str(file),
    }
    assert (record["kind"], record["result"]["answers"], record["result"]["ended"]) == ("report", 2, 0)
    assert f"{output / 'answers.jsonl'}: 0 of 2 answers ended by themselves" in capsys.readouterr().out


def test_a_prompt_that_is_too_long_is_refused_before_any_answer(
    tmp_path: Path, bytelevel_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = speaker_of(bytelevel_model_dir)
    speaker.positions = 10**6
    length = len(speaker.encode([{"role": "user", "content": "长" * 600}]))
    monkeypatch.setattr(Speaker, "reply", None)  # called, it would be a TypeError
    file = put(tmp_path, {"instruction": "短"}, {"instruction": "长" * 600})
    config = ChatConfig(str(bytelevel_model_dir), input=str(file), output=str(tmp_path / "answers"))
    assert refusal(lambda: chat(config)) == (
        f"--input {file}, prompt 2: the conversation has {length} tokens and the model 512 positions; shorten it"
    )
    assert not (tmp_path / "answers").exists()


def test_an_interrupt_leaves_an_unfinished_directory(
    tmp_path: Path, bytelevel_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    file, output = put(tmp_path, {"instruction": "短"}), tmp_path / "answers"
    config = ChatConfig(str(bytelevel_model_dir), input=str(file), output=str(output), max_new_tokens=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Speaker, "reply", interrupt)
        chat(config)
    assert "result" not in artifact.read_record(output)
    chat(config)
    assert artifact.read_record(output)["result"]["answers"] == 1


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Seven prompts of different lengths."""
    return put(tmp_path, *({"instruction": "问" * length} for length in (9, 1, 30, 2, 14, 1, 5)))


def read_answers(output: Path) -> list[Any]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_side_by_side_are_those_of_one_after_the_other(
    tmp_path: Path, model: Path, mixed: Path
) -> None:
    found = []
    for size in (1, 4):
        config = ChatConfig(str(model), input=str(mixed), output=f"{tmp_path}/{size}", max_new_tokens=6)
        config.batch_size = size
        chat(config)
        found.append(read_answers(tmp_path / str(size)))
    assert found[0] == found[1]
    assert [len(row["messages"][0]["content"]) for row in found[0]] == [9, 1, 30, 2, 14, 1, 5]


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_an_interrupted_file_goes_on_where_it_stopped(
    tmp_path: Path,
    bytelevel_model_dir: Path,
    mixed: Path,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
) -> None:
    asked: list[int] = []
    reply = Speaker.reply

    def count(self: Speaker, prompts: list[list[int]], streamer: object = None) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return reply(self, prompts)

    def config(name: str) -> ChatConfig:
        settings = {"max_new_tokens": 6, "batch_size": 2, "temperature": temperature}
        return ChatConfig(str(bytelevel_model_dir), input=str(mixed), output=str(tmp_path / name), **settings)

    chat(config("whole"))
    with monkeypatch.context() as patched:
        patched.setattr(Speaker, "reply", count)
        with pytest.raises(KeyboardInterrupt):
            chat(config("broken"))
        part = tmp_path / "broken" / "answers.part"
        part.write_text(part.read_text(encoding="utf-8") + '[3, {"repl', encoding="utf-8")  # a kill cut it
        with pytest.raises(KeyboardInterrupt):
            chat(config("broken"))
        assert part.read_text(encoding="utf-8").count("\n") == 4
        asked[:] = [0]
        with pytest.raises(KeyboardInterrupt):
            chat(config("broken"))
        assert asked == [0, 2]
    chat(config("broken"))
    assert read_answers(tmp_path / "broken") == read_answers(tmp_path / "whole")
    assert sorted(file.name for file in (tmp_path / "broken").iterdir()) == ["answers.jsonl", "run.json"]


def test_an_interrupted_file_does_not_go_on_with_other_settings(
    tmp_path: Path, bytelevel_model_dir: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def config(limit: int) -> ChatConfig:
        output = str(tmp_path / "answers")
        return ChatConfig(str(bytelevel_model_dir), input=str(mixed), output=output, max_new_tokens=limit)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Speaker, "reply", interrupt)
        chat(config(6))
    assert refusal(lambda: chat(config(7))) == (
        f"--output {tmp_path / 'answers'}: begun with max_new_tokens 6, not 7; give the same, or choose another "
        "directory"
    )


def test_a_missing_file_is_refused_before_anything_is_written(
    tmp_path: Path, bytelevel_model_dir: Path
) -> None:
    config = ChatConfig(str(bytelevel_model_dir), input=f"{tmp_path}/none", output=f"{tmp_path}/answers")
    assert refusal(lambda: chat(config)) == f"--input {tmp_path}/none: no such file"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[Message]]]:
    """Types lines, then Ctrl-D; gives the histories that the model was asked to continue."""

    def type_in(lines: str) -> list[list[Message]]:
        stream: Iterator[str] = iter(lines.splitlines())
        asked: list[list[Message]] = []

        def read(_: str) -> str:
            try:
                return next(stream)
            except StopIteration:
                raise EOFError from None

        def answer(_: Speaker, messages: list[Message], streamer: object) -> tuple[str, bool]:
            if "长" in messages[-1]["content"]:
                raise UserError("the conversation is too long")
            asked.append(list(messages))
            return f"答{len(asked)}", True

        monkeypatch.setattr(module.console, "input", read)
        monkeypatch.setattr(Speaker, "answer", answer)
        return asked

    return type_in


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def test_a_talk_remembers_what_was_said(
    bytelevel_model_dir: Path, typed: Callable[[str], list[list[Message]]]
) -> None:
    asked = typed("一\n \n二\n")
    chat(ChatConfig(str(bytelevel_model_dir)))
    assert asked == [[user("一")], [user("一"), assistant("答1"), user("二")]]


def test_clear_forgets(bytelevel_model_dir: Path, typed: Callable[[str], list[list[Message]]]) -> None:
    asked = typed("一\n/clear\n二\n")
    chat(ChatConfig(str(bytelevel_model_dir)))
    assert asked == [[user("一")], [user("二")]]


def test_exit_leaves(bytelevel_model_dir: Path, typed: Callable[[str], list[list[Message]]]) -> None:
    asked = typed("一\n /exit \n二\n")
    chat(ChatConfig(str(bytelevel_model_dir)))
    assert asked == [[user("一")]]


def test_a_refused_line_is_forgotten_and_the_talk_goes_on(
    bytelevel_model_dir: Path,
    typed: Callable[[str], list[list[Message]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = typed("一\n长\n二\n")
    chat(ChatConfig(str(bytelevel_model_dir)))
    assert asked == [[user("一")], [user("一"), assistant("答1"), user("二")]]
    assert "the conversation is too long (/clear forgets)\n" in capsys.readouterr().out


def test_a_talk_streams_the_answer(
    taught_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["中国的首都是哪里？", "/exit"])
    monkeypatch.setattr(module.console, "input", lambda _: next(lines))
    chat(ChatConfig(str(taught_models["bytelevel"]), max_new_tokens=20))
    answer = speaker_of(taught_models["bytelevel"], max_new_tokens=20).answer(QUESTION)[0]
    help_line, _, shown = capsys.readouterr().out.partition("\n")
    assert help_line == "/clear forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer"
    assert len(answer) > 5
    streamed, cut = shown.strip().splitlines()
    assert streamed.strip() == answer
    assert cut == "(cut short; --max-new-tokens allows longer answers)"


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(
    bytelevel_model_dir: Path,
    typed: Callable[[str], list[list[Message]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = typed("一\n二\n三\n")
    answer = Speaker.answer

    def press(self: Speaker, messages: list[Message], streamer: Any) -> tuple[str, bool]:
        if messages[-1]["content"] == "二":
            raise KeyboardInterrupt
        return answer(self, messages, streamer)

    monkeypatch.setattr(Speaker, "answer", press)
    chat(ChatConfig(str(bytelevel_model_dir)))
    assert asked == [[user("一")], [user("一"), assistant("答1"), user("三")]]
    assert "(stopped, and forgotten)\n" in capsys.readouterr().out

"""`zhllama chat`: talk to a model in the terminal, or answer a file of prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zhllama import artifact
from zhllama.config import UserError
from zhllama.conversation.formats import Message, RowError, from_alpaca, from_messages
from zhllama.device import default_device, default_dtype
from zhllama.model.weights import load_model, read_config, shards
from zhllama.terminal import console, say, track
from zhllama.tokenizer.load import load


@dataclass
class ChatConfig:
    """Talk to a model: streaming, with history. /clear forgets, /exit or Ctrl-D leaves."""

    model: str
    """Model directory with a chat template inside."""
    prompt: list[str] = field(default_factory=list)
    """Answer these and exit; repeatable."""
    input: str | None = None
    """JSONL of prompts to answer: instruction (and input), or messages; needs --output."""
    output: str | None = None
    """New directory for answers.jsonl, with --input."""
    system: str | None = None
    """System prompt; the template's own by default."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 always takes the likeliest token; higher samples more freely."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that make up this much probability."""
    repetition_penalty: float = 1.1
    """Above 1, tokens already used become less likely."""
    seed: int = 0
    """Of the sampling."""

    def __post_init__(self) -> None:
        """Refuse combinations that would be ignored."""
        if (self.input is None) != (self.output is None):
            raise UserError(
                "--input and --output: give both (a file of prompts, a directory for the answers) or none"
            )
        if self.prompt and self.input is not None:
            raise UserError("--prompt and --input: give one of them")
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: it must be at least 1")
        if self.temperature < 0:
            raise UserError(f"--temperature {self.temperature}: it must be at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: it must be above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise UserError(f"--repetition-penalty {self.repetition_penalty}: it must be above 0")


class Speaker:
    """A model and its tokenizer that continue a conversation until EOS.

    Raises:
        UserError: no config, no safetensors weights, no tokenizer or no chat template in the directory.
    """

    def __init__(self, directory: Path, config: ChatConfig) -> None:
        from transformers import AutoTokenizer

        self.positions = int(read_config(directory)["max_position_embeddings"])
        shards(directory)
        if load(directory, "--model").chat_template is None:
            raise UserError(f"--model {directory}: no chat template inside, so it cannot chat")
        self.tokenizer = AutoTokenizer.from_pretrained(str(directory))
        self.model = load_model(directory, default_dtype())
        self.model.to(default_device()).eval()
        self.config = config
        torch.manual_seed(config.seed)

    def encode(self, messages: list[Message]) -> Any:
        """Ids and attention mask, (1, length), of a conversation that waits for an answer.

        Raises:
            UserError: a conversation that fills the model's positions, or that its chat template refuses.
        """
        from jinja2 import TemplateError

        if self.config.system is not None:
            others = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": self.config.system}, *others]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as problem:  # some know no system role
            raise UserError(f"the chat template refuses the conversation: {problem}") from problem
        inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        inputs.pop("token_type_ids", None)
        length = inputs["input_ids"].shape[1]
        if length >= self.positions:
            raise UserError(
                f"the conversation has {length} tokens and the model {self.positions} positions; shorten it"
            )
        return inputs

    def answer(self, messages: list[Message], streamer: Any = None) -> tuple[str, bool]:
        """The reply's text and whether the model ended it itself (EOS) rather than ran out of tokens."""
        inputs = self.encode(messages)
        length = inputs["input_ids"].shape[1]
        sampling = self.config.temperature > 0
        with torch.no_grad():
            output = self.model.generate(
                **inputs,
                max_new_tokens=min(self.config.max_new_tokens, self.positions - length),
                do_sample=sampling,
                temperature=self.config.temperature if sampling else None,
                top_p=self.config.top_p if sampling else None,
                repetition_penalty=self.config.repetition_penalty,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
            )
        reply = output[0, length:].tolist()
        ended = bool(reply) and reply[-1] == self.tokenizer.eos_token_id
        return self.tokenizer.decode(reply, skip_special_tokens=True).strip(), ended


def chat(config: ChatConfig) -> None:
    """Answer the prompts given, a file of them, or whoever types.

    Raises:
        UserError: a model that cannot chat, a prompt file that is missing or not JSONL, a prompt too long.
    """
    directory = artifact.require(config.model, "model", "--model")
    if config.input is not None:
        _answer_file(config, directory)
        return
    speaker = Speaker(directory, config)
    for prompt in config.prompt:
        say(f"> {prompt}")
        say(speaker.answer([{"role": "user", "content": prompt}])[0])
    if not config.prompt:
        _talk(speaker)


def _answer_file(config: ChatConfig, directory: Path) -> None:
    """Write `answers.jsonl`: each conversation with its reply, and whether the model ended it itself."""
    assert config.input is not None and config.output is not None
    prompts = read_prompts(Path(config.input))
    with artifact.create(
        config.output, "report", "chat", config, {"model": directory, "input": config.input}
    ) as run:
        speaker = Speaker(directory, config)
        for number, messages in enumerate(prompts, 1):  # refused now rather than after hours
            try:
                speaker.encode(messages)
            except UserError as problem:
                raise UserError(f"--input {config.input}, prompt {number}: {problem}") from problem
        answers = []
        for messages in track(prompts, "answering"):
            reply, ended = speaker.answer(messages)
            answers.append({"messages": [*messages, {"role": "assistant", "content": reply}], "ended": ended})
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
        (run.path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
        run.result = {"answers": len(answers), "ended": sum(bool(answer["ended"]) for answer in answers)}
    say(f"{run.path / 'answers.jsonl'}: {run.result['ended']} of {len(answers)} answers ended by themselves")


def read_prompts(file: Path) -> list[list[Message]]:
    """Conversations that wait for an answer, from JSONL rows of `messages` or of `instruction` and `input`.

    Raises:
        UserError: no such file, no prompt inside, not UTF-8, or a row of another shape.
    """
    if not file.is_file():
        raise UserError(f"--input {file}: no such file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"--input {file}: not UTF-8 at byte {problem.start}; convert it with iconv"
        ) from problem
    prompts: list[list[Message]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(json.loads(line)))
        except json.JSONDecodeError as problem:
            raise UserError(f"--input {file} line {number}: not JSON ({problem.msg})") from problem
        except (KeyError, TypeError, RowError) as problem:
            raise UserError(
                f"--input {file} line {number}: give instruction (and input) as text, "
                "or messages of role and content that end with the user's"
            ) from problem
    if not prompts:
        raise UserError(f"--input {file}: no prompt inside")
    return prompts


def _prompt(row: dict[str, Any]) -> list[Message]:
    """A row's messages; a KeyError or TypeError where it has none that can be answered."""
    messages = from_messages(row) if "messages" in row else from_alpaca({**row, "output": ""})[:1]
    if not all(isinstance(message["content"], str) for message in messages) or not messages:
        raise TypeError
    if messages[-1]["role"] != "user":
        raise KeyError
    return messages


def _talk(speaker: Speaker) -> None:
    from transformers import TextStreamer

    history: list[Message] = []
    say("/clear forgets, /exit or Ctrl-D leaves")
    while True:
        try:
            line = console.input("> ").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/clear":
            history = []
        elif line:
            history.append({"role": "user", "content": line})
            streamer = TextStreamer(speaker.tokenizer, skip_prompt=True, skip_special_tokens=True)
            try:
                reply, _ = speaker.answer(history, streamer)
            except UserError as problem:
                say(f"{problem} (/clear forgets)")
                history.pop()
            else:
                history.append({"role": "assistant", "content": reply})

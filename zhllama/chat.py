"""`zhllama chat`: talk to a model in the terminal, or answer a file of prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zhllama import artifact
from zhllama.config import UserError
from zhllama.conversation import Message
from zhllama.device import default_device, default_dtype
from zhllama.terminal import console, say, track


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
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {self.max_new_tokens}: it must be at least 1")


class Speaker:
    """A model and its tokenizer that continue a conversation until EOS."""

    def __init__(self, directory: Path, config: ChatConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(directory))
        if self.tokenizer.chat_template is None:
            raise UserError(f"--model {directory}: no chat template inside, so it cannot chat")
        self.model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=default_dtype())
        self.model.to(default_device()).eval()
        self.config = config
        torch.manual_seed(config.seed)

    def answer(self, messages: list[Message], streamer: Any = None) -> tuple[str, bool]:
        """The reply's text and whether the model ended it itself (EOS) rather than ran out of tokens."""
        if self.config.system is not None:
            messages = [{"role": "system", "content": self.config.system}, *messages]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.model.device)
        inputs.pop("token_type_ids", None)
        sampling = self.config.temperature > 0
        with torch.no_grad():
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.config.max_new_tokens,
                do_sample=sampling,
                temperature=self.config.temperature if sampling else None,
                top_p=self.config.top_p if sampling else None,
                repetition_penalty=self.config.repetition_penalty,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
            )
        reply = output[0, inputs["input_ids"].shape[1] :].tolist()
        ended = bool(reply) and reply[-1] == self.tokenizer.eos_token_id
        return self.tokenizer.decode(reply, skip_special_tokens=True).strip(), ended


def chat(config: ChatConfig) -> None:
    """Answer the prompts given, a file of them, or whoever types.

    Raises:
        UserError: no chat template, a prompt file that is missing or not JSONL.
    """
    directory = artifact.require(config.model, "model", "--model")
    if config.input is not None and config.output is not None:
        prompts = read_prompts(Path(config.input))
        with artifact.create(
            config.output, "report", "chat", config, {"model": directory, "input": config.input}
        ) as run:
            speaker = Speaker(directory, config)
            answers = []
            for messages in track(prompts, "answering"):
                reply, ended = speaker.answer(messages)
                answers.append(
                    {"messages": [*messages, {"role": "assistant", "content": reply}], "ended": ended}
                )
            lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
            (run.path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
            run.result = {"answers": len(answers), "ended": sum(bool(answer["ended"]) for answer in answers)}
        say(
            f"{run.path / 'answers.jsonl'}: {run.result['ended']} of {len(answers)} answers ended by themselves"
        )
        return
    speaker = Speaker(directory, config)
    for prompt in config.prompt:
        say(f"> {prompt}")
        say(speaker.answer([{"role": "user", "content": prompt}])[0])
    if not config.prompt:
        _talk(speaker)


def read_prompts(file: Path) -> list[list[Message]]:
    """Conversations that wait for an answer, from JSONL rows of `messages` or of `instruction` and `input`."""
    if not file.is_file():
        raise UserError(f"--input {file}: no such file")
    prompts: list[list[Message]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UserError(f"--input {file} line {number}: not JSON ({problem.msg})") from problem
        if "messages" in row:
            prompts.append(row["messages"])
        elif "instruction" in row:
            content = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
            prompts.append([{"role": "user", "content": content}])
        else:
            raise UserError(f"--input {file} line {number}: neither messages nor instruction in it")
    if not prompts:
        raise UserError(f"--input {file}: no prompt inside")
    return prompts


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
            reply, _ = speaker.answer(history, streamer)
            history.append({"role": "assistant", "content": reply})

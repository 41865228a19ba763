"""`zhllama chat`: talk to a model in the terminal, or answer a file of prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zhllama import artifact
from zhllama.config import UserError, as_given
from zhllama.conversation.formats import Message
from zhllama.conversation.prompts import encode_prompt, read_prompts
from zhllama.device import default_device, default_dtype
from zhllama.model.directory import ModelDirectory
from zhllama.model.merge import open_adapter
from zhllama.model.run_directory import RunDirectory
from zhllama.model.weights import load_model
from zhllama.rows import read_written
from zhllama.talk.generate import Reply, batches, end_ids, generate, room
from zhllama.terminal import console, progress_bar, say, track


@dataclass
class ChatConfig:
    """Talk to a model: streaming, with history. /clear forgets, /exit or Ctrl-D leaves."""

    model: str
    """Model directory with a chat template inside."""
    adapter: str | None = None
    """Run directory of pretrain or sft, used on its base --model without merging."""
    prompt: list[str] = field(default_factory=list)
    """A prompt to answer instead of talking; repeatable."""
    input: str | None = None
    """Prompts to answer, as JSONL, JSON or a table: instruction (and input), pCLUE's input, or messages; needs
    --output."""
    output: str | None = None
    """Directory for answers.jsonl, with --input; an unfinished one is continued."""
    system: str | None = None
    """System prompt of every conversation; the template's own by default."""
    max_new_tokens: int = 256
    """The longest answer, in tokens."""
    temperature: float = 0.0
    """How freely tokens are sampled; 0 always takes the likeliest."""
    top_p: float = 0.9
    """Sample from the likeliest tokens that make up this much probability."""
    repetition_penalty: float = 1.1
    """How much less likely tokens already used become; 1 leaves them as they are."""
    seed: int = 0
    """The seed that decides what is sampled."""
    batch_size: int = 16
    """How many prompts of a file are answered side by side."""

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
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: it must be at least 1")
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

    def __init__(self, source: ModelDirectory, adapter: RunDirectory | None, config: ChatConfig) -> None:
        # The first two refuse for themselves where there is nothing to load.
        if not (source.positions and source.shards and source.tokenizer.chat_template):
            raise UserError(f"--model {source}: no chat template inside, so it cannot chat")
        self.positions, self.tokenizer = source.positions, source.chat_tokenizer
        self.model = load_model(source, default_dtype())
        if adapter is not None:
            self.model = open_adapter(adapter, self.model)
            # A prefix takes positions from the text.
            self.positions -= getattr(self.model.active_peft_config, "num_virtual_tokens", 0) or 0
        self.model.to(default_device()).eval()
        self.ends = end_ids(self.model, self.tokenizer)
        self.config = config
        torch.manual_seed(config.seed)

    def encode(self, messages: list[Message]) -> list[int]:
        """Ids of a conversation that waits for an answer.

        Raises:
            UserError: a conversation that fills the model's positions, or that its chat template refuses.
        """
        if self.config.system is not None:
            # Templates know one system message, at the front.
            others = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": self.config.system}, *others]
        return encode_prompt(messages, self.tokenizer, self.positions)

    def answer(self, messages: list[Message], streamer: Any = None) -> tuple[str, bool]:
        """The reply's text and whether the model ended it itself (EOS) rather than ran out of tokens."""
        reply = self.reply([self.encode(messages)], streamer)[0]
        return self.text(reply), reply.ended

    def reply(self, prompts: list[list[int]], streamer: Any = None) -> list[Reply]:
        """Replies to prompts that leave room for equally long ones, by the settings."""
        limit = room(prompts[0], self.config.max_new_tokens, self.positions)
        return generate(
            self.model,
            prompts,
            self.ends,
            limit,
            streamer,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            repetition_penalty=self.config.repetition_penalty,
        )

    def text(self, reply: Reply) -> str:
        """What a reply reads."""
        return str(self.tokenizer.decode(reply.ids, skip_special_tokens=True)).strip()


def chat(config: ChatConfig) -> None:
    """Answer the prompts given, a file of them, or whoever types.

    Raises:
        UserError: a model that cannot chat, a prompt file that is missing or not JSONL, a prompt too long.
    """
    source = ModelDirectory.open(config.model)
    adapter = None if config.adapter is None else RunDirectory.open(config.adapter)
    if adapter is not None:
        adapter.check_base(source)
    if config.input is not None:
        _answer_file(config, source, adapter)
        return
    speaker = Speaker(source, adapter, config)
    for prompt in config.prompt:
        say(f"> {prompt}")
        say(speaker.answer([{"role": "user", "content": prompt}])[0])
    if not config.prompt:
        _talk(speaker)


def _answer_file(config: ChatConfig, source: ModelDirectory, adapter: RunDirectory | None) -> None:
    """Write `answers.jsonl`: each conversation with its reply, how that ended and its tokens, in order."""
    assert config.input is not None and config.output is not None
    prompts = read_prompts(Path(config.input), "--input")
    _check_settings(config)
    inputs: dict[str, artifact.Input] = {"model": source, "input": config.input}
    if adapter is not None:
        inputs["adapter"] = adapter
    with artifact.create(config.output, "report", "chat", config, inputs, resume=True) as run:
        answers = _answer_all(config, prompts, Speaker(source, adapter, config), run.path / "answers.part")
        rows = []
        # Written anew in the order of the prompts: `answers.part` has them by length.
        for messages, answer in zip(prompts, answers, strict=True):
            said = {"role": "assistant", "content": answer.pop("reply")}
            rows.append(json.dumps({"messages": [*messages, said], **answer}, ensure_ascii=False) + "\n")
        (run.path / "answers.jsonl").write_text("".join(rows), encoding="utf-8")
        # Only now: until the whole file is there, the part is what a run goes on from.
        (run.path / "answers.part").unlink()
        ended = sum(answer["ended"] == "eos" for answer in answers)
        run.result = {"answers": len(answers), "ended": ended}
    say(f"{run.path / 'answers.jsonl'}: {ended} of {len(answers)} answers ended by themselves")


def _check_settings(config: ChatConfig) -> None:
    """An unfinished run goes on only with the settings that its first answers were given with."""
    assert config.output is not None
    record = artifact.read_record(config.output)
    if record.get("command") != "chat" or "result" in record:
        return
    now = as_given(config)
    for name, then in record["settings"].items():
        # The others are compared by fingerprint, or are where the run already is.
        if name not in ("model", "input", "output") and then != now.get(name):
            raise UserError(
                f"--output {config.output}: begun with {name} {then}, not {now.get(name)}; give the same, or choose "
                "another directory"
            )


def _answer_all(
    config: ChatConfig, prompts: list[list[Message]], speaker: Speaker, part: Path
) -> list[dict[str, Any]]:
    """The answers of all prompts in order; `part` keeps them as they come, so that an interrupted run goes on."""
    encoded = []
    for number, messages in enumerate(track(prompts, "reading prompts"), 1):  # refused now, not after hours
        try:
            encoded.append(speaker.encode(messages))
        except UserError as problem:
            raise UserError(f"--input {config.input}, prompt {number}: {problem}") from problem
    answers = _kept(part)
    if answers:
        say(f"{part}: {len(answers)} of {len(prompts)} prompts are answered already")
    groups = list(batches(encoded, config.batch_size, config.max_new_tokens, speaker.positions))
    # A group is answered whole or again: its sampling begins at its seed.
    left = [places for places in groups if not answers.keys() >= set(places)]
    with part.open("a", encoding="utf-8") as stream, progress_bar() as bar:
        task = bar.add_task("answering", total=len(prompts), completed=len(answers), note="")
        for places in left:
            torch.manual_seed(config.seed + places[0])  # the same whatever was answered before
            for place, reply in zip(places, speaker.reply([encoded[at] for at in places]), strict=True):
                ended = "eos" if reply.ended else "length"
                answers[place] = {"reply": speaker.text(reply), "ended": ended, "tokens": len(reply.ids)}
            stream.write("".join(json.dumps([at, answers[at]], ensure_ascii=False) + "\n" for at in places))
            # A kill then costs one group at most.
            stream.flush()
            bar.update(task, completed=len(answers))
    return [answers[place] for place in range(len(prompts))]


def _kept(part: Path) -> dict[int, dict[str, Any]]:
    """What an interrupted run has answered, by place; a line that a kill cut short is no answer."""
    return dict(read_written(part, trim=True))  # or the next line would be added to what was cut


def _talk(speaker: Speaker) -> None:
    from transformers import TextStreamer

    history: list[Message] = []
    say("/clear forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer")
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
                reply, ended = speaker.answer(history, streamer)
            except UserError as problem:
                say(f"{problem} (/clear forgets)")
                history.pop()
            except KeyboardInterrupt:
                streamer.end()
                say("(stopped, and forgotten)")
                history.pop()
            else:
                history.append({"role": "assistant", "content": reply})
                if not ended:
                    say("(cut short; --max-new-tokens allows longer answers)")

"""`zhllama scale-data`: the same tuning on more and more rows, scored by task (BELLE's data-scaling experiment).

After Ji et al. 2023 (arXiv 2303.14742), who tuned on 0.2, 0.6, 1 and 2 million rows and had ChatGPT judge the answers.
Here the score needs no judge: what a reference answer costs, in bits a character, and ROUGE-L of answers to it.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from zhllama import artifact
from zhllama.config import UserError, parse
from zhllama.conversation.encode import encode
from zhllama.conversation.formats import Message
from zhllama.conversation.mixture import remove_duplicates, remove_evaluation
from zhllama.conversation.read import in_words, read_conversations
from zhllama.conversation.settings import InstructionSource, MixtureSettings
from zhllama.measure.evaluate import load_measured
from zhllama.measure.overlap import rouge_l
from zhllama.model.directory import ModelDirectory
from zhllama.model.run_directory import RunDirectory
from zhllama.model.trainable import TrainableModel
from zhllama.pack.conversations import pack_conversations
from zhllama.page import Page, line_plot
from zhllama.rows import parse_rows
from zhllama.talk.generate import batches, end_ids, generate, room
from zhllama.terminal import print_table, say, track
from zhllama.train.held_out import first_prompt
from zhllama.train.progress import speaking, token_loss
from zhllama.train.sft import SftConfig, sft

Question = tuple[str, list[Message]]  # task category, question and reference answer
Scores = dict[str, dict[int, float]]  # task category -> rows -> score
Chosen = dict[str, list[list[Message]]]  # the questions of each task category
ALL = "mean of the tasks"


@dataclass
class ScaleDataConfig:
    """Tune one model on more and more rows of the same data, and score each by task category."""

    model: str
    """Model directory to tune, its chat template inside."""
    data: list[InstructionSource]
    """Instruction files; their rows are shuffled together, and each run takes the first so many."""
    evaluation: str
    """JSONL of `question`, `std_answer` and `class`, as BELLE's eval_set.json; rows without an answer are left out."""
    output: str
    """Directory of the runs, rows-N, and of report/; an interrupted series goes on."""
    rows: list[int] = field(default_factory=lambda: [200_000, 600_000, 1_000_000, 2_000_000])
    """How many rows each run takes; the model without any is scored as well."""
    recipe: str = "sft/llama2-7b.yaml"
    """The recipe of `sft` that every run follows, but for its model, data and output."""
    flags: list[str] = field(default_factory=list)
    """More settings of `sft`, as setting=value, for example train.max_steps=100; repeatable."""
    questions: int = 0
    """Questions of each task category whose reference answers are measured; 0 for all."""
    answered: int = 8
    """Questions of each task category that are answered, for ROUGE-L; 0 for none."""
    max_new_tokens: int = 256
    """The longest answer, in tokens."""
    block_size: int = 1024
    """The longest question and reference answer together, in tokens; longer ones are left out and counted."""
    seed: int = 0
    """The seed that decides the order of the rows and which questions are asked."""

    def __post_init__(self) -> None:
        """Refuse a series that shows nothing."""
        if not self.rows or min(self.rows) < 1 or len(set(self.rows)) < len(self.rows):
            raise UserError(f"rows {self.rows}: give different numbers of rows, each at least 1")
        if min(self.questions, self.answered) < 0:
            raise UserError("questions and answered: they must be at least 0")
        self.rows.sort()


def scale_data(config: ScaleDataConfig) -> None:
    """Run the series, score it, write `report/` with a table and a plot of each score.

    Raises:
        UserError: too few rows, an evaluation file of another shape or longer than block_size, a recipe that sft
            refuses.
    """
    source = ModelDirectory.open(config.model)
    questions = read_questions(Path(config.evaluation))
    rows = shuffled_rows(config)
    chosen = by_task(questions, source.chat_tokenizer, config)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    runs = {count: output / f"rows-{count}" for count in config.rows}
    planned = []
    for count, run in runs.items():  # all are parsed before the first starts
        file = run.with_suffix(".jsonl")
        # A file for each run, so that the run's record names its rows by fingerprint.
        lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows[:count]]
        file.write_text("".join(lines), encoding="utf-8")
        paths = ["--model", config.model, "--data", json.dumps([{"file": str(file)}]), "--output", str(run)]
        more = [f"--{flag}" for flag in config.flags]
        planned.append((run, ["--config", config.recipe, *paths, *more]))
    for run, arguments in planned:
        # A finished run is not trained again: a series takes hours.
        if "result" not in artifact.read_record(run):
            say(f"\n$ zhllama sft {' '.join(arguments)}")
            # As the command would, so that recipes, defaults and refusals are its own.
            sft(parse("sft", SftConfig, arguments))
    adapters = {count: RunDirectory.open(run) for count, run in runs.items()}
    inputs: dict[str, artifact.Input] = {"model": source, "evaluation": config.evaluation}
    inputs |= {run.path.name: run for run in adapters.values()}
    with artifact.create(output / "report", "report", "scale-data", config, inputs) as report:
        losses, overlaps = _score(config, source, adapters, chosen)
        tables = {"bits per character": table(losses), "ROUGE-L": table(overlaps)}
        artifact.write_json(report.path / "report.json", tables)
        _page(tables).write(report.path / "report.html")
        report.result = {"rows": list(runs), "questions": len(questions)}
    for name, one in tables.items():
        if one["rows"]:
            print_table(name, one["header"], one["rows"])


def read_questions(file: Path) -> list[Question]:
    """Task category, question and reference answer of each row that has one.

    Raises:
        UserError: no such file, a row of another shape, or no reference answer.
    """
    rows = parse_rows(file, "evaluation", _question, "it needs question, std_answer and class, as text")
    found = [(task, messages) for task, messages in rows if messages[1]["content"].strip()]
    if not found:
        raise UserError(f"evaluation {file}: no row with a reference answer")
    return found


def _question(row: Any) -> Question:
    texts = [row[key] for key in ("class", "question", "std_answer")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    task, question, answer = texts
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return " ".join(task.split()), turns


def shuffled_rows(config: ScaleDataConfig) -> list[list[Message]]:
    """All conversations in an order that the seed decides, but for repeats and what the evaluation asks."""
    settings = MixtureSettings(evaluation=[config.evaluation])
    files = [read_conversations(source.checked(), source.format) for source in config.data]
    # What is asked must not be learnt. Before the shuffle, so that every run loses the same rows.
    remove_evaluation(files, settings)
    remove_duplicates(files, settings.similarity)
    for source, file in zip(config.data, files, strict=True):
        if found := file.dropped.found():
            say(f"{source.file}: left out {in_words(found)}")
    kept = [row.messages for file in files for row in file.rows]
    if len(kept) < config.rows[-1]:
        raise UserError(
            f"rows {config.rows[-1]}: the data has only {len(kept):,}; ask for fewer, or give more data"
        )
    # One order for all: the rows of a shorter run are among those of every longer one.
    random.Random(config.seed).shuffle(kept)
    return kept


def by_task(questions: list[Question], tokenizer: Any, config: ScaleDataConfig) -> Chosen:
    """The questions to measure in each task category: those that fit into a block, in an order that the seed decides.

    Raises:
        UserError: a category of which none fits.
    """
    tasks: Chosen = {}
    for task, messages in random.Random(config.seed).sample(questions, len(questions)):
        tasks.setdefault(task, []).append(messages)
    for task, rows in tasks.items():
        tasks[task] = [row for row in rows if len(encode(row, tokenizer)[0]) <= config.block_size]
        if longer := len(rows) - len(tasks[task]):
            say(
                f"{task}: left out {longer} questions of {len(rows)} (longer than block_size {config.block_size})"
            )
        if not tasks[task]:
            raise UserError(
                f"evaluation {config.evaluation}: no question of {task!r} fits into block_size {config.block_size}; "
                "raise it, or take that class out of the file"
            )
    # [:None] is all of them.
    return {task: tasks[task][: config.questions or None] for task in sorted(tasks)}


def _score(
    config: ScaleDataConfig, source: ModelDirectory, runs: dict[int, RunDirectory], chosen: Chosen
) -> tuple[Scores, Scores]:
    """Bits per character of the reference answers, and ROUGE-L of answers to them, for each number of rows."""
    losses: Scores = {task: {} for task in chosen}
    overlaps: Scores = {task: {} for task in chosen} if config.answered else {}
    for count, adapter in {0: None, **runs}.items():
        model = load_measured(source, adapter)
        for task, rows in track(list(chosen.items()), f"scoring {count:,} rows"):
            losses[task][count] = _bits_per_character(model, rows, source, config.block_size)
            if config.answered:
                overlaps[task][count] = _overlap(model, rows[: config.answered], source, config)
    return losses, overlaps


def _bits_per_character(
    model: TrainableModel, rows: list[list[Message]], source: ModelDirectory, block_size: int
) -> float:
    """What the reference answers cost, their EOS included, by characters of the answers."""
    tokenizer = source.chat_tokenizer
    samples = [encode(row, tokenizer) for row in rows]
    blocks = pack_conversations(samples, block_size, tokenizer.eos_token_id)
    with speaking(model):
        # A mean by reply token, times the tokens: what the answers cost together.
        nats = token_loss(model, blocks) * sum(sum(learnt) for _, learnt in samples)
    # Characters of the references are the same whatever the vocabulary.
    return nats / math.log(2) / sum(len(row[1]["content"]) for row in rows)


def _overlap(
    model: TrainableModel, rows: list[list[Message]], source: ModelDirectory, config: ScaleDataConfig
) -> float:
    """Mean ROUGE-L over characters of the likeliest answers with the references."""
    tokenizer, positions = source.chat_tokenizer, source.positions
    prompts = [first_prompt(encode(row, tokenizer)) for row in rows]
    ends = end_ids(model.base, tokenizer)
    found = []
    for places in batches(prompts, 8, config.max_new_tokens, positions):
        most = room(prompts[places[0]], config.max_new_tokens, positions)
        with speaking(model):
            replies = generate(model.base, [prompts[place] for place in places], ends, most)
        for place, reply in zip(places, replies, strict=True):
            answer = tokenizer.decode(reply.ids, skip_special_tokens=True)
            found.append(rouge_l(rows[place][1]["content"], answer))
    return fmean(found)


def table(scores: Scores) -> dict[str, list[Any]]:
    """A row a task, a column a number of rows; the last row is their mean."""
    if not scores:
        return {"header": [], "rows": []}
    counts = list(next(iter(scores.values())))
    rows: list[list[Any]] = [[task, *by_rows.values()] for task, by_rows in scores.items()]
    rows.append([ALL, *(fmean(row[at] for row in rows) for at in range(1, len(counts) + 1))])
    return {"header": ["task", *(f"{count:,} rows" for count in counts)], "rows": rows, "counts": counts}


def _page(tables: dict[str, dict[str, list[Any]]]) -> Page:
    page = Page("Score against rows, by task category")
    meanings = {
        "bits per character": "What a reference answer and its end cost, by its characters. Lower is better.",
        "ROUGE-L": "Of the likeliest answers with the reference answers, over characters. Higher is better.",
    }
    for name, one in tables.items():
        if one["rows"]:
            page.heading(name)
            page.paragraph(meanings[name])
            page.table(one["header"], one["rows"])
            curves = {row[0]: (one["counts"], row[1:]) for row in one["rows"]}
            page.figure(line_plot(curves, "rows trained on", name, meanings[name]))
    return page

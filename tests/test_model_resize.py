"""resize-embeddings: old rows as they were, new rows from the base's sub-tokens, a complete model directory."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from zhllama.artifact import fingerprint, read_record
from zhllama.config import UserError
from zhllama.measure.evaluate import EvaluateConfig, evaluate
from zhllama.model import resize
from zhllama.model.bits import passages
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.resize import InitSettings, ResizeConfig, new_rows, resize_embeddings
from zhllama.tokenizer.load import load

EXACT = InitSettings(noise=0.0)
MATRIX = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0], [-1.0, 2.0]])
PARTS = [([0, 1], [1, 3]), ([], []), ([2], [3]), ([1, 2, 0], [3, 1, 4])]


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {
        name: tensor
        for file in ModelDirectory.open(directory).shards
        for name, tensor in load_file(file).items()
    }


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def config(
    tmp_path: Path, kind: str, model_dirs: dict[str, Path], merged_tokenizers: dict[str, Path]
) -> ResizeConfig:
    """Growing the tiny LLaMA of each kind, without noise or measurement."""
    return ResizeConfig(
        str(model_dirs[kind]),
        str(merged_tokenizers[kind]),
        str(tmp_path / "grown"),
        init=EXACT,
        measure=False,
    )


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ("mean", [[0.5, 1.0], [1.0, 2.0], [4.0, 4.0], [5 / 3, 2.0]]),
        ("length", [[0.25, 1.5], [1.0, 2.0], [4.0, 4.0], [1.0, 1.25]]),
        ("first", [[1.0, 0.0], [1.0, 2.0], [4.0, 4.0], [0.0, 2.0]]),
        ("last", [[0.0, 2.0], [1.0, 2.0], [4.0, 4.0], [1.0, 0.0]]),
        ("global", [[1.0, 2.0]] * 4),
    ],
)
def test_initialisations_by_hand(how: str, rows: list[list[float]]) -> None:
    fresh = new_rows(MATRIX, PARTS, how, 0.0, drawn())  # type: ignore[arg-type]
    torch.testing.assert_close(fresh, torch.tensor(rows))


def test_random_rows_have_the_matrix_mean_and_spread() -> None:
    old = torch.randn(500, 64, generator=drawn()) * 0.3 + 0.1
    fresh = new_rows(old, [([0], [1])] * 400, "random", 0.01, drawn(1))
    assert abs(fresh.mean() - old.mean()) < 0.01
    assert abs(fresh.std() / old.std() - 1) < 0.02


def test_noise_keeps_equal_means_apart_and_is_seeded() -> None:
    old = torch.randn(100, 64, generator=drawn()) * 0.3
    same = [([3, 4], [1, 1])] * 200
    fresh = new_rows(old, same, "mean", 0.05, drawn(7))
    assert torch.equal(fresh, new_rows(old, same, "mean", 0.05, drawn(7)))
    assert len(fresh.unique(dim=0)) == 200
    spread = (fresh - old[3:5].mean(0)).std() / old.std()
    assert abs(spread - 0.05) < 0.002


def test_old_rows_and_the_body_stay_bit_identical(config: ResizeConfig) -> None:
    resize_embeddings(replace(config, init=InitSettings()))
    before, after = tensors(Path(config.model)), tensors(Path(config.output))
    result = read_record(config.output)["result"]
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name in (INPUT_KEY, OUTPUT_KEY):
            assert len(before[name]) == result["first_new"]
            assert len(tensor) == result["rows"]
            assert result["rows"] % 64 == 0
            tensor = tensor[: result["first_new"]]
        assert torch.equal(tensor, before[name])


def test_new_rows_are_means_of_the_base_s_rows(
    config: ResizeConfig, kind: str, sentencepiece_base: Path
) -> None:
    resize_embeddings(config)
    grown = Tokenizer.from_file(config.tokenizer + "/tokenizer.json")
    base = Tokenizer.from_file(config.model + "/tokenizer.json")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_base))
    before, after = tensors(Path(config.model)), tensors(Path(config.output))
    compared = 0
    for row in range(read_record(config.output)["result"]["first_new"], grown.get_vocab_size()):
        text = grown.decode([row])
        if "�" in text or grown.encode(text, add_special_tokens=False).ids[-1] != row:
            continue  # the beginning of a character has no text of its own
        # Behind a letter SentencePiece puts no space in front.
        behind = processor.encode("a" + text)[1:]
        ids = behind if kind == "sentencepiece" else base.encode(text, add_special_tokens=False).ids
        compared += 1
        torch.testing.assert_close(after[INPUT_KEY][row], before[INPUT_KEY][ids].mean(0))
        if kind == "sentencepiece":
            sizes = [1 if processor.is_byte(i) else len(processor.id_to_piece(i).encode()) for i in ids]
            weighted = torch.tensor(sizes)[:, None] * before[OUTPUT_KEY][ids]
            torch.testing.assert_close(after[OUTPUT_KEY][row], weighted.sum(0) / sum(sizes))
    assert compared > 500


def test_padding_rows_are_the_mean(config: ResizeConfig) -> None:
    resize_embeddings(config)
    result = read_record(config.tokenizer)["result"]
    padding = tensors(Path(config.output))[INPUT_KEY][result["vocabulary"] :]
    assert len(padding) == result["rows"] - result["vocabulary"] > 0
    mean = tensors(Path(config.model))[INPUT_KEY].mean(0)
    torch.testing.assert_close(padding, mean.expand_as(padding))


def test_the_directory_is_complete(config: ResizeConfig) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    resize_embeddings(config)
    model, loading = AutoModelForCausalLM.from_pretrained(config.output, output_loading_info=True)
    assert not any(loading.values())
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size >= len(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.chat_template
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )


def test_generation_settings_of_the_base_are_kept(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    (base / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 99999}')
    resize_embeddings(replace(config, model=str(base)))
    written = json.loads((Path(config.output) / "generation_config.json").read_text())
    model_config = json.loads((Path(config.output) / "config.json").read_text())
    assert written["temperature"] == 0.6
    assert written["eos_token_id"] == model_config["eos_token_id"] != 99999


def test_generation_settings_are_written_where_the_base_has_none(
    tmp_path: Path, config: ResizeConfig
) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    (base / "generation_config.json").unlink()
    resize_embeddings(replace(config, model=str(base)))
    written = json.loads((Path(config.output) / "generation_config.json").read_text())
    assert set(written) == {"bos_token_id", "eos_token_id", "pad_token_id"}


def test_shards_give_the_same_as_one_file(tmp_path: Path, config: ResizeConfig) -> None:
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(config.model, tmp_path / "base")
    (base / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(config.model).save_pretrained(base, max_shard_size="100KB")
    noisy = replace(config, init=InitSettings())
    resize_embeddings(noisy)
    resize_embeddings(replace(noisy, model=str(base), output=str(tmp_path / "sharded")))
    one, many = tensors(Path(config.output)), tensors(tmp_path / "sharded")
    assert len(ModelDirectory.open(tmp_path / "sharded").shards) > 1
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_the_stored_dtype_is_kept(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    halves = {name: tensor.bfloat16() for name, tensor in tensors(base).items()}
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    resize_embeddings(replace(config, model=str(base)))
    assert {tensor.dtype for tensor in tensors(Path(config.output)).values()} == {torch.bfloat16}


def test_a_tied_matrix_that_is_stored_twice_stays_one(
    tmp_path: Path, bytelevel_model_dir: Path, merged_tokenizers: dict[str, Path]
) -> None:
    base = shutil.copytree(bytelevel_model_dir, tmp_path / "base")
    twice = tensors(base)
    twice[OUTPUT_KEY] = twice[INPUT_KEY].clone()
    save_file(twice, base / "model.safetensors", metadata={"format": "pt"})
    tokenizer = str(merged_tokenizers["bytelevel"])
    resize_embeddings(ResizeConfig(str(base), tokenizer, str(tmp_path / "grown"), measure=False))
    grown = tensors(tmp_path / "grown")
    assert len(grown[INPUT_KEY]) == read_record(tmp_path / "grown")["result"]["rows"]
    assert torch.equal(grown[INPUT_KEY], grown[OUTPUT_KEY])


def test_a_pad_token_without_a_row_gets_one(tmp_path: Path, config: ResizeConfig, kind: str) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    short = {
        name: tensor[:-1].clone() if name in (INPUT_KEY, OUTPUT_KEY) else tensor
        for name, tensor in tensors(base).items()
    }
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    resize_embeddings(replace(config, model=str(base)))
    result, merged = (read_record(path)["result"] for path in (config.output, config.tokenizer))
    after = tensors(Path(config.output))[INPUT_KEY]
    assert result["first_new"] == merged["first_new"] - 1
    assert len(after) == result["rows"] == merged["rows"]
    torch.testing.assert_close(after[merged["first_new"] - 1], short[INPUT_KEY].mean(0))


def test_rows_beyond_the_base_s_tokens_make_room(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    first = read_record(config.tokenizer)["result"]["first_new"]
    padded = {
        name: torch.cat([tensor, torch.full((5, 32), 9.0)]) if name in (INPUT_KEY, OUTPUT_KEY) else tensor
        for name, tensor in tensors(base).items()
    }
    save_file(padded, base / "model.safetensors", metadata={"format": "pt"})
    resize_embeddings(config)
    resize_embeddings(replace(config, model=str(base), output=str(tmp_path / "other")))
    with_padding, without = tensors(tmp_path / "other"), tensors(Path(config.output))
    assert torch.equal(with_padding[INPUT_KEY], without[INPUT_KEY])
    assert read_record(tmp_path / "other")["result"]["first_new"] == first


def test_the_base_is_named_by_hash_and_untouched(config: ResizeConfig) -> None:
    before = fingerprint(config.model)
    resize_embeddings(config)
    assert read_record(config.output)["result"]["base"] == before == fingerprint(config.model)


def test_tokenizer_that_is_no_merge(config: ResizeConfig) -> None:
    with pytest.raises(UserError, match=r"--tokenizer .*: not made by merge-tokenizer; run that first"):
        resize_embeddings(replace(config, tokenizer=config.model))
    assert not Path(config.output).exists()


def test_tokenizer_of_another_base(
    config: ResizeConfig, kind: str, merged_tokenizers: dict[str, Path]
) -> None:
    other = merged_tokenizers["bytelevel" if kind == "sentencepiece" else "sentencepiece"]
    message = r"the base of --tokenizer .* does not match the tokenizer in --model .*merge-tokenizer --base"
    with pytest.raises(UserError, match=message):
        resize_embeddings(replace(config, tokenizer=str(other)))
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tokenizer.json", "tokenizer.model"], "no tokenizer inside"),
        (["model.safetensors"], "no model.safetensors inside"),
        (["config.json"], "no config.json inside"),
    ],
)
def test_base_with_a_file_missing(
    tmp_path: Path, config: ResizeConfig, names: list[str], message: str
) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    for name in names:
        (base / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=message):
        resize_embeddings(replace(config, model=str(base)))
    assert not Path(config.output).exists()


def test_base_of_another_family(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    save_file({"transformer.wte.weight": torch.zeros(2, 2)}, base / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor model.embed_tokens.weight; a LLaMA-family checkpoint"):
        resize_embeddings(replace(config, model=str(base)))
    assert not Path(config.output).exists()


def test_missing_base(config: ResizeConfig) -> None:
    with pytest.raises(UserError, match=r"--model ./nowhere: no such file or directory"):
        resize_embeddings(replace(config, model="./nowhere"))


def test_output_that_holds_a_model(config: ResizeConfig) -> None:
    resize_embeddings(config)
    with pytest.raises(
        UserError, match=r"already holds a run of resize-embeddings; choose another directory"
    ):
        resize_embeddings(config)


def test_bits_per_byte_before_and_after_are_what_evaluate_gives(
    tmp_path: Path,
    config: ResizeConfig,
    kind: str,
    taught_models: dict[str, Path],
    known_text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "own.txt"
    text.write_text(known_text, encoding="utf-8")
    resize_embeddings(replace(config, model=str(taught_models[kind]), measure=True, text=[f"own={text}"]))
    shown = capsys.readouterr()
    measured = read_record(config.output)["result"]["measured"]
    assert measured.keys() == {"own"}
    for side, model in (("before", taught_models[kind]), ("after", Path(config.output))):
        evaluate(EvaluateConfig(str(tmp_path / side), text=[f"own={text}"], model=str(model)))
        assert measured["own"][side] == read_record(tmp_path / side)["result"]["own"]
    row = next(line.split() for line in shown.out.splitlines() if line.startswith("own"))
    assert row == ["own", *(f"{measured['own'][side]:.3f}" for side in ("before", "after"))]
    assert "warning" not in shown.err
    assert read_record(config.output)["inputs"]["text own"]["path"] == str(text)


def test_two_passages_are_measured_without_a_text(tmp_path: Path, config: ResizeConfig) -> None:
    resize_embeddings(replace(config, measure=True))
    measured = read_record(config.output)["result"]["measured"]
    assert measured.keys() == {"chinese", "english"}
    texts = [f"{name}={file}" for name, file in passages().items()]
    evaluate(EvaluateConfig(str(tmp_path / "e"), text=texts, model=config.output))
    assert all(measured[name]["after"] == read_record(tmp_path / "e")["result"][name] for name in measured)


def test_a_loss_above_chance_is_warned_about(
    tmp_path: Path, config: ResizeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    loud = {
        name: 100 * tensor if name in (INPUT_KEY, OUTPUT_KEY) else tensor
        for name, tensor in tensors(base).items()
    }
    save_file(loud, base / "model.safetensors", metadata={"format": "pt"})
    resize_embeddings(replace(config, model=str(base), measure=True))
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in warnings] == ["chinese", "english"]
    assert all("more than a uniform guess" in line and "probe-init" in line for line in warnings)


def test_without_measuring_no_model_is_loaded(config: ResizeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(resize, "load_trainable")
    resize_embeddings(config)
    assert "measured" not in read_record(config.output)["result"]
    with pytest.raises(NameError):
        resize_embeddings(replace(config, measure=True, output=config.output + "-measured"))


def test_a_text_that_is_not_there(config: ResizeConfig) -> None:
    with pytest.raises(UserError, match=r"--text own=none.txt: no such file: none.txt"):
        resize_embeddings(replace(config, measure=True, text=["own=none.txt"]))
    assert not Path(config.output).exists()


def test_every_end_of_the_base_stays_one(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [5, 7], "top_p": 0.8}')
    resize_embeddings(replace(config, model=str(base)))
    written = json.loads((Path(config.output) / "generation_config.json").read_text())
    own = load(config.output)
    assert (written["eos_token_id"], written["top_p"]) == ([own.eos_id(), 5, 7], 0.8)


def test_the_config_says_what_the_weights_lie_in(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text()) | {"torch_dtype": "float16"}
    settings.pop("dtype", None)
    (base / "config.json").write_text(json.dumps(settings))
    resize_embeddings(replace(config, model=str(base)))
    written = json.loads((Path(config.output) / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    ("settings", "tensor", "how"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, None, "gptq"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, None, "bitsandbytes"),
        ({"compression_config": {"format": "int-quantized"}}, None, "int-quantized"),
        ({}, "model.layers.0.mlp.up_proj.qweight", "I32 in model.layers.0.mlp.up_proj.qweight"),
        ({}, "model.layers.0.mlp.up_proj.float8", "F8_E4M3 in model.layers.0.mlp.up_proj.float8"),
    ],
)
def test_quantised_bases_are_refused(
    tmp_path: Path, config: ResizeConfig, settings: dict[str, Any], tensor: str | None, how: str
) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    (base / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | settings))
    if tensor:
        kind = torch.int32 if tensor.endswith("qweight") else torch.float8_e4m3fn
        whole = load_file(base / "model.safetensors") | {tensor: torch.zeros(2, 2).to(kind)}
        save_file(whole, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"its weights are quantised \(.*({how}).*\), and only plain ones"):
        resize_embeddings(replace(config, model=str(base), measure=False))
    assert not Path(config.output).exists()


def test_an_output_matrix_that_is_not_there_is_named(tmp_path: Path, config: ResizeConfig) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (base / "config.json").write_text(json.dumps(settings))
    weights = load_file(base / "model.safetensors")
    weights.pop("lm_head.weight", None)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tie_word_embeddings false\), and there is no lm_head.weight"):
        resize_embeddings(replace(config, model=str(base), measure=False))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_was_not_downloaded_whole_is_named(
    tmp_path: Path, config: ResizeConfig, name: str
) -> None:
    base = shutil.copytree(config.model, tmp_path / "base")
    (base / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=f"{name} is no .*download it again"):
        resize_embeddings(replace(config, model=str(base), measure=False))

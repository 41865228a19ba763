"""encode: documents to ids, the same on any number of threads."""

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing

from zhllama.config import UserError
from zhllama.pack import encode
from zhllama.pack.encode import encode_documents, encode_to_file, encode_to_files
from zhllama.tokenizer.load import PARALLEL, Loaded, load


def words_tokenizer(size: int) -> Loaded:
    """A tokenizer with a vocabulary of this size, whose words are numbers."""
    vocabulary = {str(number): number for number in range(size)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    return Loaded("bytelevel", fast, None, {}, None, "1", None, "0", None, Path(), Path())


def documents_of(text: str) -> list[str]:
    lines = text.splitlines()[:400]
    return ["\n".join(lines[at : at + 3]) for at in range(0, len(lines), 3)]


def test_ids_are_those_of_the_tokenizer_with_eos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_dirs: dict[str, Path], chinese_text: str, kind: str
) -> None:
    monkeypatch.setattr(encode, "BATCH", 1000)  # many batches
    tokenizer = load(model_dirs[kind])
    texts = documents_of(chinese_text)
    wanted = [[*tokenizer.fast.encode(text).ids, tokenizer.eos_id()] for text in texts]
    for threads in (1, 2, 5):
        file = tmp_path / str(threads)
        encoded = encode_to_file(texts, tokenizer, file, threads)
        assert encoded.ids().tolist() == [token for ids in wanted for token in ids]
        assert encoded.lengths.tolist() == [len(ids) for ids in wanted]
        assert encoded.lengths.dtype == np.int64


def test_documents_go_to_the_file_whose_number_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_dirs: dict[str, Path], chinese_text: str, kind: str
) -> None:
    monkeypatch.setattr(encode, "BATCH", 1000)
    tokenizer = load(model_dirs[kind])
    texts = documents_of(chinese_text)
    numbered = [(place * place % 3, text) for place, text in enumerate(texts)]  # 0 and 1, never 2
    several = encode_to_files(numbered, tokenizer, [tmp_path / str(n) for n in range(3)], 2)
    for number, encoded in enumerate(several):
        alone = encode_to_file([t for n, t in numbered if n == number], tokenizer, tmp_path / "alone", 1)
        assert encoded.file.read_bytes() == alone.file.read_bytes()
        assert encoded.lengths.tolist() == alone.lengths.tolist()
    assert not len(several[2].lengths)


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_dtype_holds_every_id(tmp_path: Path, size: int, dtype: type) -> None:
    encoded = encode_to_file([str(size - 1)] * 4, words_tokenizer(size), tmp_path / "ids", 1)
    assert encoded.dtype == encoded.ids().dtype == dtype
    assert encoded.ids()[0] == size - 1


def test_a_tokenizer_that_adds_eos_gets_no_second_one(tmp_path: Path) -> None:
    tokenizer = words_tokenizer(10)
    tokenizer.fast.post_processor = TemplateProcessing(single="$A 1", special_tokens=[("1", 1)])
    assert encode_to_file(["5"], tokenizer, tmp_path / "ids", 1).ids().tolist() == [5, 1]


def test_special_names_in_text_stay_text(extended_models: dict[str, Path], kind: str) -> None:
    tokenizer = load(extended_models[kind])
    text = f"a{tokenizer.eos}b{tokenizer.pad}c"
    [(found, sizes)] = encode_documents([text], tokenizer)
    ids = found.tolist()
    assert sizes == [len(ids)]
    assert ids.count(tokenizer.eos_id()) == 1
    assert ids[-1] == tokenizer.eos_id()
    assert tokenizer.id_of(str(tokenizer.pad)) not in ids
    assert text in tokenizer.fast.decode(ids[:-1], skip_special_tokens=False)


@pytest.mark.parametrize("before", [None, "true"])
def test_settings_are_as_before_even_after_an_error(
    monkeypatch: pytest.MonkeyPatch, model_dirs: dict[str, Path], kind: str, before: str | None
) -> None:
    monkeypatch.delenv(PARALLEL, raising=False)
    if before:
        monkeypatch.setenv(PARALLEL, before)
    tokenizer = load(model_dirs[kind])

    def broken() -> object:
        yield "好" * encode.BATCH
        raise UserError("cut short")

    with pytest.raises(UserError, match="cut short"):
        list(encode_documents(broken(), tokenizer))  # type: ignore[arg-type]
    assert tokenizer.fast.encode_special_tokens is False
    assert os.environ.get(PARALLEL) == before


def test_tokenizer_without_eos(tmp_path: Path, sentencepiece_model_dir: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((sentencepiece_model_dir / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="the tokenizer has no EOS token"):
        list(encode_documents(["好"], load(tmp_path)))

"""A tokenizer as llama.cpp sees it: its vocabulary as GGUF, and the ids that the real llama.cpp gives."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zhllama.config import UserError
from zhllama.tokenizer import write
from zhllama.tokenizer.admit import NORMAL
from zhllama.tokenizer.load import Loaded

WHEEL = "xllamacpp"  # llama.cpp as one shared library; optional, the tests have it
LAYOUT = "2026.10."  # the versions whose llama_model_params is the one below
# What a byte-level pre-tokenizer's settings contain -> llama.cpp's name for it. Its converter finds the name by
# hashing the tokens of a probe text with Chinese in it, and every Chinese extension changes that hash.
PRE_TOKENIZERS = (
    (re.compile(r"\{1,3\}"), "llama-bpe"),
    (re.compile(r"\\p\{N\}\|"), "qwen2"),
    (re.compile(r'"Digits"'), "smollm"),
    (re.compile(r'"use_regex": true'), "gpt-2"),
)
# llama.cpp tells every key of a file otherwise.
SILENCE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    lambda level, text, data: None
)


def knows(loaded: Loaded) -> bool:
    """Whether llama.cpp has the algorithm and the pre-tokenizer of a tokenizer."""
    if loaded.proto is None:
        return loaded.kind == "bytelevel" and _pre_tokenizer(loaded) is not None
    return bool(loaded.proto.trainer_spec.model_type == write.BPE)


def pre_tokenizer_name(loaded: Loaded) -> str:
    """The `tokenizer.ggml.pre` of a byte-level tokenizer; raises UserError for one that llama.cpp lacks."""
    name = _pre_tokenizer(loaded)
    if name is None:
        raise UserError(f"{loaded.file}: llama.cpp has no pre-tokenizer like the one inside")
    return name


def _pre_tokenizer(loaded: Loaded) -> str | None:
    settings = json.dumps(json.loads(loaded.fast.to_str())["pre_tokenizer"])
    return next((name for pattern, name in PRE_TOKENIZERS if pattern.search(settings)), None)


def write_vocabulary(loaded: Loaded, path: Path, prefix: bool = True) -> None:
    """Write a GGUF file that holds a vocabulary and no tensor (keys: ggml's gguf.md).

    Without `prefix` llama.cpp puts no space in front of a text, as inside a sentence.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    if loaded.proto is not None:
        pieces = loaded.proto.pieces
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([piece.piece for piece in pieces])
        writer.add_token_scores([piece.score for piece in pieces])
        writer.add_token_types([piece.type for piece in pieces])
        writer.add_add_space_prefix(prefix and loaded.proto.normalizer_spec.add_dummy_prefix)
    else:
        tokens, types = _bytelevel_tokens(loaded)
        model = json.loads(loaded.fast.to_str())["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(loaded))
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(
            [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        )
    for role, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if token := getattr(loaded, role):
            add(loaded.id_of(token))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _bytelevel_tokens(loaded: Loaded) -> tuple[list[str], list[int]]:
    names = {index: token for token, index in loaded.fast.get_vocab(with_added_tokens=True).items()}
    added = loaded.fast.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(max(names) + 1):
        tokens.append(names.get(index, f"<gap_{index}>"))
        kind = write.CONTROL if index not in names or (index in added and added[index].special) else NORMAL
        types.append(write.USER_DEFINED if kind == NORMAL and index in added else kind)
    return tokens, types


class LlamaCpp:
    """Real llama.cpp on a vocabulary, by way of the C interface in the wheel's library (llama.h)."""

    class ModelParameters(ctypes.Structure):
        """llama_model_params of these versions; only `vocab_only` is ever set."""

        _fields_ = [
            ("pointers_and_numbers", ctypes.c_uint64 * 9),
            ("vocab_only", ctypes.c_bool),
            ("switches", ctypes.c_bool * 7),
        ]

    def __init__(self, path: Path) -> None:
        self.library = _library()
        parameters = self.library.llama_model_default_params()
        parameters.vocab_only = True
        self.model = self.library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise UserError(f"{path}: llama.cpp does not load it")
        self.vocabulary = self.library.llama_model_get_vocab(self.model)

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of each text, without BOS; the names of special tokens are text unless `special`."""
        found = []
        for text in texts:
            raw = text.encode()
            room = len(raw) + 8
            ids = (ctypes.c_int32 * room)()
            count = self.library.llama_tokenize(self.vocabulary, raw, len(raw), ids, room, False, special)
            assert count >= 0, text
            found.append(ids[:count])
        return found


@contextmanager
def opened(loaded: Loaded, prefix: bool = True) -> Iterator[LlamaCpp]:
    """llama.cpp on the vocabulary of a tokenizer, for as long as the block runs.

    Raises:
        UserError: a pre-tokenizer that llama.cpp lacks.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        write_vocabulary(loaded, file, prefix)
        runtime = LlamaCpp(file)
        try:
            yield runtime
        finally:
            runtime.library.llama_model_free(runtime.model)


def is_available() -> bool:
    """Whether the wheel is installed, in a version whose structures are known here."""
    try:
        return importlib.metadata.version(WHEEL).startswith(LAYOUT)
    except importlib.metadata.PackageNotFoundError:
        return False


def _library() -> Any:
    spec = importlib.util.find_spec(WHEEL)
    assert spec is not None and spec.origin is not None, f"{WHEEL} is not installed"
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob(f"{WHEEL}*.so"))))
    pointer, number, switch = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    library.llama_model_default_params.restype = LlamaCpp.ModelParameters
    library.llama_model_default_params.argtypes = []
    library.llama_model_load_from_file.restype = pointer
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, LlamaCpp.ModelParameters]
    library.llama_model_get_vocab.restype = pointer
    library.llama_model_get_vocab.argtypes = [pointer]
    library.llama_model_free.argtypes = [pointer]
    library.llama_model_free.restype = None
    library.llama_tokenize.restype = number
    library.llama_tokenize.argtypes = [pointer, ctypes.c_char_p, number, pointer, number, switch, switch]
    library.llama_log_set.argtypes = [pointer, pointer]
    library.llama_log_set(ctypes.cast(SILENCE, pointer), None)
    return library

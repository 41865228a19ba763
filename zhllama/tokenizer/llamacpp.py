"""A tokenizer as llama.cpp sees it: its vocabulary as GGUF, and the ids that the real llama.cpp gives."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from zhllama.config import UserError
from zhllama.tokenizer import write
from zhllama.tokenizer.admit import NORMAL
from zhllama.tokenizer.load import Loaded

WHEELS = ("xllamacpp", "gguf")  # llama.cpp with its server, its file format; optional, the tests have them
# What a byte-level pre-tokenizer's settings contain -> llama.cpp's name for it. Its converter finds the name by
# hashing the tokens of a probe text with Chinese in it, and every Chinese extension changes that hash.
# The first that fits: Llama-3 takes up to three digits together, Qwen each alone, SmolLM2 has a step of its
# own for them, and GPT-2's pattern knows none of that.
PRE_TOKENIZERS = (
    (re.compile(r"\{1,3\}"), "llama-bpe"),
    (re.compile(r"\\p\{N\}\|"), "qwen2"),
    (re.compile(r'"Digits"'), "smollm"),
    (re.compile(r'"use_regex": true'), "gpt-2"),
)
# The server takes no vocabulary without a model, and llama.cpp aborts on one of no layers: the smallest that it runs.
WIDTH = 32
LAYER = {
    "attn_norm": (WIDTH,),
    **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH)),
    "ffn_norm": (WIDTH,),
    **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), (WIDTH, WIDTH)),
}
CONTEXT = 64  # tokens; asking for ids does not use it


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
    """Write a GGUF file that holds a vocabulary and a model of one layer of zeros (keys: ggml's gguf.md).

    Without `prefix` llama.cpp puts no space in front of a text, as inside a sentence.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    tokens = _add_vocabulary(writer, loaded, prefix)
    _add_model(writer, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, loaded: Loaded, prefix: bool) -> int:
    """Add the keys of a vocabulary; how many tokens it has."""
    if loaded.proto is not None:
        pieces = loaded.proto.pieces
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        tokens = [piece.piece for piece in pieces]
        writer.add_token_scores([piece.score for piece in pieces])
        writer.add_token_types([piece.type for piece in pieces])
        writer.add_add_space_prefix(prefix and loaded.proto.normalizer_spec.add_dummy_prefix)
    else:
        tokens, types = _bytelevel_tokens(loaded)
        model = json.loads(loaded.fast.to_str())["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(loaded))
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
    writer.add_token_list(tokens)
    return len(tokens)


def _add_model(writer: Any, tokens: int) -> None:
    """Add the keys and tensors of a LLaMA of one layer."""
    import numpy as np

    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (tokens, WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        # Vectors stay float32, as llama.cpp's converter writes them.
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32 if len(shape) == 1 else np.float16))


def _bytelevel_tokens(loaded: Loaded) -> tuple[list[str], list[int]]:
    names = {index: token for token, index in loaded.fast.get_vocab(with_added_tokens=True).items()}
    added = loaded.fast.get_added_tokens_decoder()
    tokens, types = [], []
    # GGUF lists tokens by id without gaps: an id without a token gets a name that no text matches.
    for index in range(max(names) + 1):
        tokens.append(names.get(index, f"<gap_{index}>"))
        kind = write.CONTROL if index not in names or (index in added and added[index].special) else NORMAL
        # llama.cpp finds a user-defined token in text as `tokenizers` does; a normal one only by merges.
        types.append(write.USER_DEFINED if kind == NORMAL and index in added else kind)
    return tokens, types


class LlamaCpp:
    """Real llama.cpp on a model file: its own server, in this process, asked over HTTP (`/tokenize` of its README)."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.port = 0  # any that is free
        parameters.n_ctx = CONTEXT
        # Nothing is generated: no second slot or thread, no trial run, no search for what fits in memory.
        parameters.n_parallel = parameters.n_threads_http = parameters.cpuparams.n_threads = 1
        parameters.warmup = parameters.fit_params = False
        parameters.endpoint_metrics = True
        parameters.verbosity = -1  # it tells every key of a file otherwise
        try:
            self.server = xllamacpp.Server(parameters)
        except RuntimeError as problem:
            raise UserError(f"{path}: llama.cpp does not load it") from problem
        # The server's loop answers this one: ended before that has begun, it would begin after all, and never end.
        self.server.handle_metrics()
        self.address = urlsplit(self.server.listening_address).netloc

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of each text, without BOS; the names of special tokens are text unless `special`."""
        found = []
        # One connection for all: a check asks for the ids of every piece and of thousands of texts.
        with closing(HTTPConnection(self.address)) as connection:
            for text in texts:
                asked = {"content": text, "add_special": False, "parse_special": special}
                connection.request("POST", "/tokenize", json.dumps(asked))
                answer = connection.getresponse()
                read = answer.read()
                assert answer.status == 200, (text, read)
                found.append(json.loads(read)["tokens"])
        return found

    def close(self) -> None:
        """End the server and its threads."""
        del self.server


@contextmanager
def opened(loaded: Loaded, prefix: bool = True) -> Iterator[LlamaCpp]:
    """llama.cpp on the vocabulary of a tokenizer, for as long as the block runs.

    Raises:
        UserError: a pre-tokenizer that llama.cpp lacks.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        write_vocabulary(loaded, file, prefix)
        with closing(LlamaCpp(file)) as runtime:
            yield runtime


def is_available() -> bool:
    """Whether its wheels are installed."""
    return all(importlib.util.find_spec(wheel) for wheel in WHEELS)

"""Fixed-size blocks of tokens as trainers read them, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from zhllama.artifact import Opened
from zhllama.config import UserError
from zhllama.model.fast.loss import IGNORED


class TokensDirectory(Opened):
    """What `pack` wrote: blocks, and which tokenizer their ids are of."""

    kind = "tokens"

    @property
    def tokenizer(self) -> str:
        """The fingerprint of the tokenizer that the blocks were packed with.

        Raises:
            UserError: a directory that `pack` did not write.
        """
        if "tokenizer" not in self.result:
            raise UserError(f"{self.flag} {self}: not made by zhllama pack; run that first")
        return str(self.result["tokenizer"])

    def blocks(self, attend_across_documents: bool = False) -> Blocks:
        """The blocks, memory-mapped."""
        return Blocks.open(self.path, attend_across_documents)


@dataclass
class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of tokens and the documents in them.

    Attributes:
        ids: (blocks, size), uint16 or uint32.
        lengths: (pieces,) int32, the lengths of the documents (or cut parts) of a block, block after block; what
            they leave of a block's end is padding.
        offsets: (blocks + 1,) int64, where each block's lengths start.
        loss: (blocks, size) bool, which tokens are learnt; None means all.
        attend_across_documents: positions run on through a block and attention crosses its documents.
    """

    ids: NDArray[Any]
    lengths: NDArray[Any]
    offsets: NDArray[Any]
    loss: NDArray[Any] | None = None
    attend_across_documents: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids` (restarting per document) and `labels`, each (size,) int64.

        With `attend_across_documents` positions run on, and a document's first token is learnt as well.
        """
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        lengths = self.lengths[self.offsets[index] : self.offsets[index + 1]].tolist()
        used, size = sum(lengths), len(ids)
        # Positions that restart are what keeps attention inside a document. Padding is a segment of its own,
        # so that nothing sees it.
        segments = [size] if self.attend_across_documents else [*lengths, size - used]
        positions = torch.cat([torch.arange(length) for length in segments])
        # A segment's first token follows nothing that it may see.
        learnt = positions != 0
        learnt[used:] = False
        if self.loss is not None:
            learnt &= torch.from_numpy(np.array(self.loss[index]))
        # Labels stand at their own tokens: the model shifts them.
        return {"input_ids": ids, "position_ids": positions, "labels": torch.where(learnt, ids, IGNORED)}

    @classmethod
    def open(cls, directory: Path, attend_across_documents: bool = False) -> Blocks:
        """Memory-map what `pack` wrote."""
        ids, lengths, offsets = (
            np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("ids", "lengths", "offsets")
        )
        return cls(ids, lengths, offsets, attend_across_documents=attend_across_documents)

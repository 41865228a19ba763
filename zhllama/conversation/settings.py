"""What a recipe says of a mixture: its files, and how they become one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zhllama.config import UserError
from zhllama.conversation.encode import Learn, TooLong
from zhllama.conversation.formats import FormatName
from zhllama.conversation.turns import Turns
from zhllama.rows import can_read


@dataclass
class InstructionSource:
    """One instruction file of a mixture."""

    file: str
    """JSON (a list) or JSONL, a .csv or .tsv whose first row names the columns, translation pairs as .tsv (all of these
    .gz, .zst or .xz too), .parquet, .arrow, a directory of `save_to_disk`, or hf:NAME[:SPLIT] of a hub, streamed."""
    format: FormatName = "detect"
    """Format of the file's rows; told from their keys by default."""
    samples: int = 0
    """Rows to draw from the file, again where it has fewer; 0 takes all once."""
    weight: float = 0
    """Instead of samples: the file's share of the rows of all sources with a weight."""
    max_tokens: int = 0
    """Most tokens to take from the file; 0 sets no limit."""
    max_repeats: float = 4
    """Most times that a row is drawn."""
    task: str = ""
    """Type of task of the file's rows; by default the row's own (pCLUE) or that of the format."""

    def checked(self) -> Path:
        """The file's path; raises UserError where there is none, or a setting contradicts another."""
        if not can_read(Path(self.file)):
            raise UserError(f"data: no such file: {self.file}")
        for name in ("samples", "weight", "max_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"data {self.file}: {name} {getattr(self, name)} is below 0")
        # A number and a share would each decide how many rows there are.
        if self.samples and self.weight:
            raise UserError(f"data {self.file}: samples and weight: give one of them")
        if self.max_repeats < 1:
            raise UserError(f"data {self.file}: max_repeats {self.max_repeats} is below 1")
        return Path(self.file)


@dataclass
class MixtureSettings:
    """How the sources become one mixture."""

    temperature: float = 1.0
    """Shares of the types of task go as rows ** (1 / temperature): 1 keeps them, more evens them out."""
    evaluation: list[str] = field(default_factory=list)
    """Files that the model will be measured on, JSON, tables or .txt: what occurs in them is not learnt."""
    similarity: float = 0.8
    """Rows whose character 5-grams overlap by this share count as one, the first; 1 removes only the same."""
    learn: Learn = "every"
    """Which replies of a conversation are learnt: every one, or the last."""
    turns: Turns = "mend"
    """Conversations whose turns do not alternate: turns of one speaker become one, a first reply or a last request that
    stands alone is left out, and each is counted (mend); or the conversation is left out (drop)."""
    too_long: TooLong = "shorten"
    """Conversations over block_size lose their oldest turns, then up to half of their request; or are dropped."""
    seed: int = 0
    """Decides which rows are drawn."""

    def __post_init__(self) -> None:
        """Refuse what no mixture can have."""
        if self.temperature <= 0:
            raise UserError(f"mixture.temperature {self.temperature}: it must be above 0")
        if not 0 < self.similarity <= 1:
            raise UserError(f"mixture.similarity {self.similarity}: it must be above 0 and at most 1")

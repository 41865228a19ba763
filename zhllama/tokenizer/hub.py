"""Model and tokenizer directories that may lie on the Hugging Face hub instead of here."""

from __future__ import annotations

import re
from pathlib import Path

from zhllama.artifact import Opened
from zhllama.config import UserError

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # no pickle, no code


class HubDirectory(Opened):
    """A local directory, or a name like `org/model`, of which a snapshot is fetched."""

    @classmethod
    def elsewhere(cls, source: str, flag: str) -> Path:
        """The snapshot's folder; raises UserError where the hub has none or does not answer."""
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):  # ./name and ../name are paths
            return super().elsewhere(source, flag)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(source, allow_patterns=FILES))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
            raise UserError(
                f"{flag} {source}: no such directory here, and the hub gave none ({type(problem).__name__})"
            ) from problem

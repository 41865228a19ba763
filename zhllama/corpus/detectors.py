"""Rules that need more than a text: a language detector, a user's words, a user's function that scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zhllama.config import UserError
from zhllama.corpus import language
from zhllama.corpus.compare import folded
from zhllama.corpus.tally import DocumentTally
from zhllama.corpus.words import read_words


@dataclass(frozen=True)
class Detectors:
    """When a document is dropped; no languages, no words, no score: that rule is off."""

    languages: frozenset[str] = frozenset()
    min_language: float = 0.5
    words: Path | None = None
    max_words: int = 0
    score: str = ""
    min_score: float = 0.5

    def rules(self, tally: DocumentTally) -> Callable[[str], str | None]:
        """The rules as one function that gives a reason or None; kept here and not pickled, languages are counted.

        Raises:
            UserError: a list of words or a scoring function that cannot be read.
        """
        listed = read_words(self.words) if self.words else None
        score = load_score(self.score) if self.score else None

        def judge(text: str) -> str | None:
            if self.languages:
                found = language.shares(text)
                # Counted before it is judged: the report shows what a stricter setting would cost.
                tally.languages[next(iter(found), "unknown")] += 1
                if language.unwanted(found, self.languages, self.min_language):
                    return "another language"
            if listed and sum(1 for _ in listed.find(folded(text))) > self.max_words:
                return "listed words"
            # Not `<`: a score of NaN, which compares with nothing, drops too.
            if score and not score(text) >= self.min_score:
                return "low score"
            return None

        return judge


def load_score(place: str) -> Callable[[str], float]:
    """The function that `FILE.py:NAME` names.

    Raises:
        UserError: not written so, no such file, a file that Python cannot run, no such function in it.
    """
    file, _, name = place.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UserError(f"--score {place}: write it as FILE.py:FUNCTION, with a file that exists")
    # By its path, not by import: the file need not lie where Python looks for modules.
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError) as problem:
        raise UserError(f"--score {place}: the file does not run ({problem})") from problem
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"--score {place}: no function {name!r} inside")
    return function  # type: ignore[no-any-return]

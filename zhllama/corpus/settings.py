"""Settings of `clean`."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import Literal

from zhllama.config import UserError
from zhllama.corpus.convert import Chinese, Width
from zhllama.corpus.privacy import Privacy
from zhllama.corpus.read import Broken, Split

Where = Literal["local", "ray", "slurm"]


@dataclass
class Slurm:
    """Jobs on a Slurm cluster; account and the like are taken from sbatch's own variables."""

    partition: str = ""
    """Partition (sinfo lists them); must be given."""
    time: str = "24:00:00"
    """Time limit of a task; a task takes shard_megabytes of input, the comparing passes have one for all."""
    memory: int = 4
    """GB of memory of a task."""


@dataclass
class CleanConfig:
    """Clean raw text into a corpus: normalise it, drop what is not worth learning, keep duplicates once."""

    corpus: str
    """Raw text: a .txt, .jsonl, .parquet, .arrow, .html, .md, .epub or .docx file (also .txt.gz, .jsonl.zst, ...), or a
    folder of them; a .json, .csv or .tsv file; a directory that `datasets` saved (save_to_disk); or hf:NAME[:SPLIT], a
    dataset of the Hugging Face hub, streamed. Of web pages the main text is taken (trafilatura), of Markdown all but
    its front matter; each chapter of an EPUB is a document, a Word file is one."""
    output: str
    """The corpus directory to write."""
    encoding: str = "guess"
    """Encoding of text files, such as utf-8, gb18030 (reads GBK and GB2312 too), big5 or utf-16; guess: of each
    file by its first megabyte."""
    documents: Split = "guess"
    """What is a document in a .txt: the file, each line, or what stands between blank lines; guess: between
    blank lines where the file has any, otherwise the file."""
    key: str = "text"
    """Key (.jsonl) or column (tables) that holds the text."""
    broken: Broken = "stop"
    """A file or row that cannot be read: stop with its name, or skip it, count it and go on."""
    min_characters: int = 20
    """Drop documents with fewer characters, white space not counted."""
    max_repetition: float = 0.5
    """Drop documents where more than this share of 10-character sequences repeats an earlier one."""
    max_symbols: float = 0.5
    """Drop documents where more than this share of characters is digits, punctuation or symbols."""
    max_ornaments: float = 0.2
    """Drop documents where more than this share of characters is stars, boxes, arrows or emoji."""
    min_function_words: float = 0.08
    """Drop documents that are lists: 50 Chinese characters or more, fewer than one end of a sentence in 150 and less
    than this share of function words (的 了 是 在 ...); 0: keep menus, lists of links, names or key phrases."""
    min_chinese: float = 0.0
    """Drop documents where less than this share of letters is Chinese."""
    chinese: Chinese = "keep"
    """Write traditional Chinese as it is (keep) or as simplified (opencc)."""
    width: Width = "keep"
    """Write full-width letters and digits (ＡＢＣ１２３) as they are (keep) or in half width; punctuation stays."""
    languages: str = "zh zh-Hant en code"
    """Languages to keep (zh is simplified, zh-Hant traditional Chinese, code programs, others as in ISO 639-1: ja, ru);
    any: all."""
    min_language: float = 0.5
    """Drop documents where the languages to keep have less than this share of what pycld2 is sure of."""
    words: str = ""
    """A file with one word a line (# begins a comment): drop documents that hold any; upper case and full width are
    the same as lower case and half width."""
    max_words: int = 0
    """Most listed words that a kept document may hold."""
    score: str = ""
    """A scoring function of your own, text -> number, written FILE.py:FUNCTION; documents under min_score are dropped."""
    min_score: float = 0.5
    """Least score with which a document is kept."""
    deduplicate: bool = True
    """Keep only the first of documents with the same text (white space not compared)."""
    near_duplicates: bool = True
    """Keep one of the documents that share most of their 5-character sequences (MinHash; half of them at 72%, nearly all
    from 85%): the one with the most letters, of equals the earliest; only where deduplicate is true."""
    boilerplate: int = 0
    """Remove Chinese lines (6 letters or more, digits not compared) that more than so many documents hold; of lines that
    begin with a label such as 责任编辑： 来源： 上一篇： only the label is compared; 0: none; for web pages try 20."""
    paragraphs: bool = False
    """Keep a line of 30 letters or more only in the first document that holds it."""
    decontaminate: str = ""
    """A folder of evaluation files (.json, .jsonl, .csv, .tsv, .txt, packed or not; .parquet, .arrow): documents that
    share 13 letters in a row with one of their texts are dropped."""
    privacy: Privacy = "replace"
    """Personal data (mail, IP, phones, resident IDs, credit codes, bank cards, plates, QQ, WeChat): replace each
    item by a placeholder such as [手机号], drop the documents that hold any, or keep."""
    dry_run: bool = False
    """Clean a sample of at most 2,000 documents, the first ones of up to 100 files spread over the corpus, into
    OUTPUT-dry-run, which the next dry run replaces: to look at its report.html before the whole. It runs on this machine,
    whatever the executor."""
    executor: Where = "local"
    """Where the work is done: here (local), on the Ray cluster that this machine belongs to (ray), or by jobs that are
    submitted (slurm). On a cluster corpus and output lie in a folder that all machines share. The output is the same."""
    slurm: Slurm = field(default_factory=Slurm)
    workers: int = 0
    """Tasks at a time; 0: one per core, on a cluster as many as it takes. The output is the same whatever their
    number."""
    shard_megabytes: float = 16
    """Size of an output file, and of the portion of input that one task takes."""

    def __post_init__(self) -> None:
        shares = "max_repetition max_symbols max_ornaments min_function_words min_chinese min_language"
        for name in shares.split():
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a share is between 0 and 1")
        if (
            min(self.workers, self.min_characters, self.max_words, self.boilerplate) < 0
            or self.shard_megabytes <= 0
        ):
            raise UserError(
                "workers, min_characters, max_words and boilerplate must not be negative, "
                "shard_megabytes must be positive"
            )
        # Names are Python's, so its own codecs say which there are.
        if self.encoding == "guess":
            return
        try:
            "".encode(self.encoding)  # refuses codecs between bytes, such as base64
            codecs.getincrementaldecoder(self.encoding)  # not every codec reads a file piece by piece
        except (LookupError, UnicodeError) as problem:
            raise UserError(
                f"encoding {self.encoding}: unknown; try utf-8, gb18030, big5 or utf-16"
            ) from problem

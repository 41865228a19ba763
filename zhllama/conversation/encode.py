"""Messages to token ids, and which of them are learnt: batches, each text tokenised once."""

from __future__ import annotations

import os
import re
from array import array
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Literal, NamedTuple

from zhllama.config import UserError
from zhllama.conversation.formats import Message
from zhllama.tokenizer.load import own_threads
from zhllama.workers import WorkerPool

Learn = Literal["every", "last"]
TooLong = Literal["shorten", "drop"]
BATCH = 64  # conversations rendered and tokenised at a time
NEAR = 200  # characters before a seam that are searched for the beginning of a line
CLOSE = 8  # characters by which a shortened request may be shorter than it must
MOST_CUT = 0.5  # of a request's characters; what is left of more would not be the request


class EncodedConversation(NamedTuple):
    """Token ids, and 1 or True for those that are learnt."""

    ids: Sequence[int]
    learnt: Sequence[int]


class Shortened(NamedTuple):
    """A sample that was cut to the limit, and how."""

    sample: EncodedConversation
    how: str


Outcome = EncodedConversation | Shortened | str
Segment = tuple[str, str, bool]  # what stands before, the text, whether it is learnt


class Encoder:
    """Conversations to samples: each reply and its EOS are learnt, or only the last one's, and nothing else.

    The ids before a reply are exactly those that `chat` sends for the same history; what a template puts after a
    reply's EOS counts as part of the next prompt. A reply's ids are those that it has behind the last line or
    special token of its prompt, whose own ids stay: so no text is tokenised twice.

    Raises:
        UserError: a tokenizer without EOS; while encoding, a template whose prompt is not the beginning of the whole.
    """

    def __init__(
        self, tokenizer: Any, limit: int = 1 << 30, learn: Learn = "every", too_long: TooLong = "drop"
    ) -> None:
        if tokenizer.eos_token is None:
            raise UserError("--model: its tokenizer has no EOS token, so no reply could end")
        self.tokenizer, self.limit, self.learn, self.too_long = tokenizer, limit, learn, too_long
        self.fast = tokenizer.backend_tokenizer
        # A tokenizer.json may pad or cut by itself, which would change ids without a word.
        self.fast.no_padding()
        self.fast.no_truncation()
        added = tokenizer.added_tokens_decoder.values()
        self.special = _any_of([token.content for token in added if token.special])
        # Where tokens hardly ever reach across: at a special token, and before a word that begins a line.
        self.seam = re.compile(rf"{_any_of([token.content for token in added]).pattern}|(?<=\n)(?=\S)")
        # Ids of what stands before texts; before the first of them there is nothing.
        self.known = {"": array("I")}

    def encode_all(
        self, conversations: Sequence[list[Message]], processes: int = 0
    ) -> Generator[Outcome, None, None]:
        """A sample for each conversation in order, or why there is none; the same for any number of processes.

        Processes and not threads: rendering holds Python's lock. They begin with the conversations in memory (fork),
        so only ids travel.

        Raises:
            StoppedError: a process was killed.
        """
        firsts = range(0, len(conversations), BATCH)
        # Each of a launcher's ranks encodes the same: all together take all cores.
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # Not os.cpu_count: a container or a scheduler may have given this process fewer cores.
        processes = min(processes or len(os.sched_getaffinity(0)) // ranks, len(firsts))
        with own_threads():
            if processes < 2:
                for first in firsts:
                    yield from self.encode_batch(conversations[first : first + BATCH])
            else:
                yield from self._encode_apart(conversations, firsts, processes)

    def _encode_apart(
        self, conversations: Sequence[list[Message]], firsts: range, processes: int
    ) -> Generator[Outcome, None, None]:
        pool = WorkerPool(
            processes,
            _initialize_worker,
            (self, conversations),
            name="data: a process that tokenised conversations",
            remedy="run the same command with more memory, or fewer samples",
        )
        waiting: deque[Future[list[Outcome]]] = deque()
        with pool:
            for first in firsts:
                waiting.append(pool.submit(_encode_from, first))
                # No more in flight: ids of a whole file would wait in memory for their turn.
                if len(waiting) > 2 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def encode_batch(self, conversations: Sequence[list[Message]]) -> list[Outcome]:
        """A sample for each conversation, or why there is none."""
        outcomes: list[Outcome] = list(self._encode_whole(conversations))
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, EncodedConversation) and len(outcome.ids) > self.limit:
                outcomes[place] = self._fit(conversations[place])
        return outcomes

    def _encode_whole(self, conversations: Sequence[list[Message]]) -> list[EncodedConversation | str]:
        results: list[EncodedConversation | str] = []
        segments: list[list[Segment]] = []
        rendered = iter(self._render([c for c in conversations if not self._names_special(c)]))
        for conversation in conversations:
            if self._names_special(conversation):  # `</s>` in a reply would teach to stop there
                results.append("the name of a special token in the text")
            elif (parts := next(rendered)) is None:
                results.append("refused by the chat template")
            else:
                segments.append(parts)
                results.append("")
        pieces = iter(self._tokenise([segment for parts in segments for segment in parts]))
        of_each = iter(segments)
        return [
            result or self._join(list(islice(pieces, len(parts := next(of_each)))), parts)
            for result in results
        ]

    def _names_special(self, conversation: list[Message]) -> bool:
        return any(self.special.search(message["content"]) for message in conversation)

    def _render(self, conversations: Sequence[list[Message]]) -> list[list[Segment] | None]:
        """The segments of each conversation; None where the template refuses it."""
        from jinja2 import TemplateError

        turns = [
            (place, turn)
            for place, messages in enumerate(conversations)
            for turn, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        if not turns:
            return []
        render = self.tokenizer.apply_chat_template
        try:
            prompts = render(
                [conversations[place][:turn] for place, turn in turns],
                tokenize=False,
                add_generation_prompt=True,
            )
            wholes = render([conversations[place][: turn + 1] for place, turn in turns], tokenize=False)
        except TemplateError:  # some know no system role
            if len(conversations) == 1:
                return [None]
            # One refusal fails the batch, so each is tried alone to find which.
            return [self._render([one])[0] for one in conversations]
        segments: list[list[Segment] | None] = [[] for _ in conversations]
        done, last = "", -1
        for (place, _), prompt, whole in zip(turns, prompts, wholes, strict=True):
            # What was rendered up to the turn before is encoded already; another conversation begins with
            # nothing.
            done = done if place == last else ""
            last = place
            reply = self._reply(done, prompt, whole)
            parts = segments[place]
            assert parts is not None
            parts += [(done, prompt[len(done) :], False), (prompt, reply, True)]
            done = prompt + reply
        return segments

    def _reply(self, done: str, prompt: str, whole: str) -> str:
        """What a whole adds to its prompt, up to its EOS; with one where the template writes none."""
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise UserError(
                "chat template: a prompt is not the beginning of the conversation; use another template"
            )
        eos: str = self.tokenizer.eos_token
        reply = whole[len(prompt) :]
        return reply[: reply.rindex(eos) + len(eos)] if eos in reply else reply + eos

    def _tokenise(self, segments: Sequence[Segment]) -> list[array[int]]:
        """Ids of each text as it stands behind what is before; on its own where the seam would change that."""
        befores = [self._near(before) for before, _, _ in segments]
        new = list(dict.fromkeys(before for before in befores if before not in self.known))
        texts = [before + text for before, (_, text, _) in zip(befores, segments, strict=True)]
        encodings = self.fast.encode_batch_fast([*new, *texts], add_special_tokens=False)
        heads = {before: array("I", encoding.ids) for before, encoding in zip(new, encodings, strict=False)}
        result: list[array[int]] = []
        for before, (_, text, _), encoding in zip(befores, segments, encodings[len(new) :], strict=True):
            ids = array("I", encoding.ids)
            head = heads[before] if before in heads else self.known[before]
            # Otherwise a token reaches across the seam, and what was sent before would not be a prefix.
            if ids[: len(head)] == head:
                del ids[: len(head)]
            else:
                ids = array("I", self.fast.encode(text, add_special_tokens=False).ids)
            result.append(ids)
        if len(self.known) < NEAR:  # most templates end a prompt in few ways
            self.known.update(heads)
        return result

    def _near(self, before: str) -> str:
        """The last line or special token of a text and what follows it: all that the next ids depend on."""
        # A search from the beginning would take quadratic time over long conversations.
        near = before[-NEAR:]
        starts = [found.start() for found in self.seam.finditer(near)]
        return near[starts[-1] :] if starts else before

    def _join(self, pieces: Sequence[array[int]], parts: Sequence[Segment]) -> EncodedConversation:
        ids, learnt = array("I"), bytearray()
        for place, (piece, (_, _, is_reply)) in enumerate(zip(pieces, parts, strict=True), 1):
            ids.extend(piece)
            counts = is_reply and (self.learn == "every" or place == len(parts))
            # A byte a token, where a list would take eight.
            learnt += (b"\1" if counts else b"\0") * len(piece)
        return EncodedConversation(ids, bytes(learnt))

    def _fit(self, messages: list[Message]) -> Outcome:
        """A conversation over the limit without its oldest turns, then without the middle of its request.

        Replies stay whole; a request of which more than half would have to go is left out with its reply.
        """
        refusal = f"longer than block_size {self.limit}"
        if self.too_long == "drop":
            return refusal
        start = int(messages[0]["role"] == "system")
        # A request and its reply go together: roles take turns behind the system message.
        while len(messages) > start + 2:
            messages = [*messages[:start], *messages[start + 2 :]]
            whole = self._encode_whole([messages])[0]
            if isinstance(whole, str):
                return whole
            if len(whole.ids) <= self.limit:
                return Shortened(whole, "shortened by its oldest turns")
        request = messages[start]["content"]
        fits: EncodedConversation | None = None
        low, high = int(len(request) * (1 - MOST_CUT)), len(request)  # characters kept; so many are too many
        # By halves, because tokens cannot be told from characters without encoding.
        while fits is None or high - low > CLOSE:
            kept = low if fits is None else (low + high) // 2
            # The middle goes: what is asked stands at the beginning or the end of a request.
            content = f"{request[: kept - kept // 2]}…{request[len(request) - kept // 2 :]}"
            cut = {"role": "user", "content": content}
            sample = self._encode_whole([[*messages[:start], cut, *messages[start + 1 :]]])[0]
            if isinstance(sample, EncodedConversation) and len(sample.ids) <= self.limit:
                fits, low = sample, kept
            elif fits is None:
                return refusal
            else:
                high = kept
        return Shortened(fits, "shortened in the middle of its request")


def encode(messages: list[Message], tokenizer: Any, learn: Learn = "every") -> tuple[list[int], list[bool]]:
    """Token ids of one conversation and which of them are learnt, as `Encoder` has them.

    Raises:
        UserError: a template that refuses the conversation, or whose prompt is not the beginning of the whole.
    """
    outcome = Encoder(tokenizer, learn=learn).encode_batch([messages])[0]
    if not isinstance(outcome, EncodedConversation):
        raise UserError(f"the conversation cannot be learnt: {outcome}")
    return list(outcome.ids), list(map(bool, outcome.learnt))


_work: tuple[Encoder, Sequence[list[Message]]]  # what a worker process began with


def _initialize_worker(encoder: Encoder, conversations: Sequence[list[Message]]) -> None:
    global _work
    _work = encoder, conversations


def _encode_from(first: int) -> list[Outcome]:
    encoder, conversations = _work
    return encoder.encode_batch(conversations[first : first + BATCH])


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    """Any of these names; nothing where there is none."""
    # An empty pattern would match everywhere; (?!) matches nowhere.
    return re.compile("|".join(map(re.escape, names)) if names else "(?!)")

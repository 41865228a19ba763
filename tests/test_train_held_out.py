"""Rows kept from training, and rows to ask about."""

import pytest

from zhllama.config import UserError
from zhllama.conversation.encode import EncodedConversation
from zhllama.train.held_out import draw_short, first_prompt, hold_out


def sample(number: int, reply: int = 2) -> EncodedConversation:
    return EncodedConversation([number, 7, *range(reply)], [False, False, *[True] * reply])


ROWS = [sample(number) for number in range(30)]
SOURCES = [("a/first.jsonl", 20), ("b/second.jsonl", 10)]


def test_each_source_gives_so_many_rows_and_trains_on_the_others() -> None:
    left, held = hold_out(ROWS, SOURCES, 3, seed=0)
    assert {name: len(rows) for name, rows in held.items()} == {"first": 3, "second": 3}
    assert all(row in ROWS[:20] for row in held["first"])
    assert all(row in ROWS[20:] for row in held["second"])
    kept = [row for rows in held.values() for row in rows]
    assert [ROWS[row] for row in left] == [row for row in ROWS if row not in kept]


def test_a_seed_draws_the_same_rows() -> None:
    drawn = [hold_out(ROWS, SOURCES, 3, seed)[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_copies_of_a_row_held_out_train_nowhere() -> None:
    rows = [*ROWS[:10], *ROWS[:10]]
    left, held = hold_out(rows, [("a.jsonl", 10), ("b.jsonl", 10)], 4, seed=0)
    training = [rows[row] for row in left]
    kept = [row for rows in held.values() for row in rows]
    assert not any(row in kept for row in training)
    assert len({row[0][0] for row in kept} | {row[0][0] for row in training}) == 10


def test_sources_of_one_name_are_told_apart() -> None:
    assert list(hold_out(ROWS, [("a/x.jsonl", 20), ("b/x.jsonl", 10)], 1, seed=0)[1]) == ["x", "x-2"]


def test_nothing_is_held_out_unless_asked() -> None:
    assert hold_out(ROWS, SOURCES, 0, seed=0) == (list(range(30)), {})


def test_a_source_with_too_few_rows() -> None:
    with pytest.raises(UserError) as refused:
        hold_out([*ROWS[:5], *ROWS[:5]], [("few.jsonl", 10)], 3, seed=0)
    assert str(refused.value) == (
        "progress.held_out 3: few.jsonl has 5 different rows, and at most half may be kept from training"
    )


def test_prompts_with_short_replies_are_asked() -> None:
    rows = [sample(number, reply=number) for number in range(1, 9)]
    drawn = draw_short([*rows, *rows], 3, 4, seed=0)
    assert len({row[0][0] for row in drawn}) == 3
    assert all(row[0][0] <= 4 for row in drawn)
    assert drawn == draw_short([*rows, *rows], 3, 4, seed=0)


def test_where_no_reply_is_short_the_shortest_are_asked() -> None:
    rows = [sample(number, reply=number) for number in range(9, 1, -1)]
    assert [row[0][0] for row in draw_short(rows, 3, 1, seed=0)] == [2, 3, 4]


def test_a_prompt_ends_where_the_first_reply_begins() -> None:
    ids, learnt = [5, 6, 1, 2, 7, 3], [False, False, True, True, False, True]
    assert first_prompt((ids, learnt)) == [5, 6]

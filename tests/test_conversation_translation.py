"""Translation pairs as instructions."""

import pytest

from zhllama.conversation.translation import TO_CHINESE, TO_ENGLISH, translation_request

PAIRS = [(f"Sentence number {number}.", f"第{number}句话。") for number in range(400)]


def test_both_directions_take_about_half_each() -> None:
    replies = [translation_request(*pair)[1] for pair in PAIRS]
    to_chinese = sum(reply == chinese for reply, (_, chinese) in zip(replies, PAIRS, strict=True))
    assert 160 < to_chinese < 240


def test_every_wording_is_used_and_holds_the_text() -> None:
    asked = set()
    for english, chinese in PAIRS:
        request, reply = translation_request(english, chinese)
        text = english if reply == chinese else chinese
        assert text in request
        asked.add(request.replace(text, "{}"))
    assert asked == {*TO_CHINESE, *TO_ENGLISH}


@pytest.mark.parametrize("wordings", [TO_CHINESE, TO_ENGLISH])
def test_half_of_the_wordings_are_chinese(wordings: tuple[str, ...]) -> None:
    assert len(set(wordings)) == 12
    assert sum(any("一" <= c <= "鿿" for c in wording) for wording in wordings) == 6


def test_a_pair_is_always_the_same_request() -> None:
    assert [translation_request(*pair) for pair in PAIRS] == [translation_request(*pair) for pair in PAIRS]


def test_braces_in_a_text_stay() -> None:
    request, reply = translation_request("a {} b", "甲 {0} 乙")
    assert {"a {} b", "甲 {0} 乙"} == {reply, "a {} b" if "a {} b" in request else "甲 {0} 乙"}

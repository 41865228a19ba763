"""Characters that people cannot see, and that no rule or tokenizer should meet: kept only where they say something.

They are Unicode's default-ignorable code points (the property Default_Ignorable_Code_Point) and the anchors of ruby
text: marks of direction, soft hyphens, fillers, joiners, variation selectors, tags. A telephone number with one
inside is no number to a rule, and a word with one inside has other tokens.
"""

from __future__ import annotations

import re

from zhllama.corpus.han import HAN_CLASS

# What emoji are built of: symbols, skin tones, signs of sex.
EMOJI = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
# Scripts that join their letters or part them by U+200C and U+200D: Arabic, Syriac, the scripts of India and beyond.
JOINED = "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc"
# Symbols, Chinese characters and letters of Myanmar have variants that a selector chooses.
VARIED = f"{EMOJI}{HAN_CLASS}\u1000-\u109f\u2200-\u22ff"
SUSPECTS = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
SUSPECT = re.compile(f"[{SUSPECTS}]")  # one set of characters, which `re` finds fast: most texts have none
INVISIBLE = re.compile(
    f"(?=[{SUSPECTS}])(?:"
    # Between emoji, or behind a letter of a script that joins.
    rf"\u200d(?!(?<=[{EMOJI}\ufe0f]\u200d)[{EMOJI}])(?!(?<=[{JOINED}]\u200d))"
    rf"|\u200c(?<![{JOINED}]\u200c)"
    r"|[\u180b-\u180f](?<![\u1820-\u18aa][\u180b-\u180f])"
    # Of keycaps the digit has a selector, and a frame behind it. Runs go whole: one by one, each takes a pass.
    rf"|(?<![{VARIED}])(?!(?<=[#*0-9])\ufe0f\u20e3)[\ufe00-\ufe0f]+"
    rf"|[\U000e0100-\U000e01ef](?<![{HAN_CLASS}][\U000e0100-\U000e01ef])"
    # A flag of a country's part is a black flag and tags behind it.
    r"|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+"
    r"|[^\u180b-\u180f\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef])"
)


def without_invisible(text: str) -> str:
    """A text without the invisible characters that say nothing where they stand; twice is as once."""
    while SUSPECT.search(text):
        found = INVISIBLE.sub("", text)
        if found == text:  # what is left stands where it belongs
            break
        text = found
    return text

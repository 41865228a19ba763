"""Personal data in text: found by pattern and check digit, replaced by placeholders that say what stood there.

A pattern proposes; the rules of the number's own standard decide, so that dates, prices and scores stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import phonenumbers
from stdnum import luhn
from stdnum.cn import ric, uscc
from stdnum.exceptions import ValidationError

from zhllama.corpus.ngrams import narrow

Privacy = Literal["replace", "drop", "keep"]
# Every item has four such characters in a row; patterns look only so far around them.
ISLAND = re.compile(r"[0-9A-Za-z@.+_:-]{4,}")
DIGIT = re.compile(r"[0-9]")
# Without one of these a text holds no item without a digit, and English is passed over from number to number.
CLUES = ("@", "at)", "at]", "微信", "威信", "薇信", "v信", "wx", "vx", "wechat", "weixin", "加v", "加薇")
AROUND = 40
PREFIX = r"(?<!\d)(?<!\d\.)"  # not within a number
# 86 without a sign or a gap only before a whole mobile number, or it is any number's beginning.
COUNTRY = r"(?:(?:\+|00)86[ -]?|86[ -]|86(?=1[3-9]\d{9}))?"
# UnionPay (62), older cards of Chinese banks (60, 9559), Visa, Mastercard, American Express, JCB. A check
# digit is right by chance once in ten numbers, so the issuer's has to be right too.
ISSUERS = re.compile(r"62\d{14,17}|60\d{14,17}|4\d{15}|5[1-5]\d{14}|3[47]\d{13}|35\d{14}|9559\d{12,15}")
# Not before 年 or more digits: 1998-2003年 follows a number in a list as well.
ANOTHER = re.compile(r"(?:[、,/或及和]| [/或] )([2-9]\d{2,3}[ -]?\d{4})(?![\d年])", re.ASCII)
# Before four numbers with points: 版本 2.0.0.1 is no address.
VERSION = re.compile(r"(?i:版本?号?|version|(?<![a-z])v(?:er)?\.?) ?$")
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"


class Kind(NamedTuple):
    """One kind of personal data: what replaces it, a pattern (its group `item` where it has one), and a check.

    `folded` patterns see full-width characters as ASCII; every `numeric` item has an island with a digit.
    """

    name: str
    placeholder: str
    pattern: re.Pattern[str]
    check: Callable[[re.Match[str]], bool]
    folded: bool = True
    numeric: bool = True


@dataclass(frozen=True)
class Found:
    """Where one item stands in a text."""

    kind: Kind
    start: int
    end: int


def redact(text: str) -> tuple[str, Counter[str]]:
    """A text with placeholders in place of personal data, and how many of each kind there were.

    Doing it twice changes nothing.
    """
    found = find(text)
    if not found:
        return text, Counter()
    parts: list[str] = []
    end = 0
    for item in found:
        parts += [text[end : item.start], item.kind.placeholder]
        end = item.end
    return "".join([*parts, text[end:]]), Counter(item.kind.name for item in found)


def find(text: str) -> list[Found]:
    """All personal data in a text, in order; where two kinds claim the same characters the first of `KINDS` wins."""
    # Full-width digits, letters and signs are read as their ASCII forms; every character keeps its place.
    # Dashes are written for hyphens between the parts of telephone numbers.
    folded = narrow(text).replace("—", "-").replace("–", "-")
    numbers = list(_windows(folded, numeric=True))
    words = list(_windows(folded, numeric=False)) if any(map(folded.lower().__contains__, CLUES)) else []
    found: list[Found] = []
    for kind in KINDS if numbers or words else ():
        for start, end in numbers if kind.numeric else words:
            for match in kind.pattern.finditer(folded if kind.folded else text, start, end):
                span = match.span("item" if "item" in kind.pattern.groupindex else 0)
                # Kinds that come first keep their place; the check, which is slow, is made only for what is
                # free.
                if all(span[1] <= other.start or span[0] >= other.end for other in found) and kind.check(
                    match
                ):
                    found.append(Found(kind, *span))
                    found += _more_numbers(folded, found[-1])
    return sorted(found, key=lambda item: item.start)


def _windows(text: str, numeric: bool) -> Iterator[tuple[int, int]]:
    """Where patterns need to look: around islands of ASCII, which Chinese text has few of, or those with a digit."""
    start = end = -1
    for island in ISLAND.finditer(text):
        if numeric and not DIGIT.search(text, island.start(), island.end()):
            continue
        if island.start() - AROUND > end:
            if end >= 0:
                yield start, end
            # Windows that would touch are one, so that no item lies across an edge.
            start = max(0, island.start() - AROUND)
        end = island.end() + AROUND
    if end >= 0:
        yield start, end


def _more_numbers(text: str, item: Found) -> Iterator[Found]:
    """The numbers that follow a landline in a list, without its area code."""
    # Without an area code these are recognised by the number before them alone.
    while item.kind.name == "landline" and (more := ANOTHER.match(text, item.end)):
        item = Found(item.kind, *more.span(1))
        yield item


def _always(match: re.Match[str]) -> bool:
    return True


def _digits(text: str) -> str:
    return "".join(re.findall(r"\d", text))


def _is_wechat(match: re.Match[str]) -> bool:
    """A word after 微信 is an id where it is called one, or does not look like a word; 薇信 and vx mean nothing else."""
    identifier = match["item"]
    called = match[0].removesuffix(identifier)
    return bool(re.search(r"[:=号薇威v]|id", called, re.IGNORECASE) or re.search(r"[\d_]", identifier))


def _is_resident(match: re.Match[str]) -> bool:
    # GB 11643: birth date, then a check digit by ISO 7064, where X is ten.
    number = re.sub("[ -]", "", match[0]).upper()
    if len(number) != 18:
        return True  # fifteen digits after the words, from before check digits
    try:
        ric.get_birth_date(number)
    except ValidationError:
        return False
    return bool(number[-1] == ric.calc_check_digit(number))


def _is_credit_code(match: re.Match[str]) -> bool:
    return bool(uscc.is_valid(match[0]))


def _is_card(match: re.Match[str]) -> bool:
    number = _digits(match[0])
    # Luhn's check digit (ISO/IEC 7812).
    return bool(ISSUERS.fullmatch(number) and luhn.is_valid(number))


def _is_phone(types: tuple[int, ...]) -> Callable[[re.Match[str]], bool]:
    def check(match: re.Match[str]) -> bool:
        # An extension is no part of the number that is checked.
        written = match[0].removesuffix(match.groupdict().get("extension") or "")
        try:
            number = phonenumbers.parse(written, "CN")
        except phonenumbers.NumberParseException:
            return False
        return phonenumbers.is_valid_number(number) and phonenumbers.number_type(number) in types

    return check


def _is_address(match: re.Match[str]) -> bool:
    """Addresses that belong to somebody: not those of private networks, not versions of software."""
    if VERSION.search(match.string, max(0, match.start() - 10), match.start()):
        return False
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


def _is_plate(match: re.Match[str]) -> bool:
    # Or 京 before a word of capitals would be a plate.
    return len(_digits(match[0])) >= 3


TYPES = phonenumbers.PhoneNumberType
MOBILE = (TYPES.MOBILE, TYPES.FIXED_LINE_OR_MOBILE)
BANK = r"(?:银行卡|借记卡|信用卡|储蓄卡|卡号|[账帐][号户])"


def _kinds() -> Iterator[Kind]:
    def kind(
        name: str, placeholder: str, pattern: str, check: Callable[[re.Match[str]], bool] = _always
    ) -> Kind:
        return Kind(name, placeholder, re.compile(pattern, re.ASCII), check)

    yield kind(
        "mail",
        "[邮箱]",
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}(?:@| ?[(\[]at[)\]] ?)"
        r"(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}",
    )._replace(numeric=False)
    yield kind(
        "QQ",
        "[QQ号]",
        r"(?:(?<![A-Za-z])[Qq]{2}|扣扣|(?:加|\+)[Qq](?![A-Za-z])|(?<![A-Za-z])[Qq](?=群|[: ]\d))"
        r"(?:交流|咨询|客服|粉丝|读者)?(?:群号?|号码?)?[码 :=是为(\[【]{0,4}(?P<item>[1-9]\d{4,10})(?!\d)",
    )
    yield kind(
        "WeChat",
        "[微信号]",
        r"(?:[微威薇]信|(?<![A-Za-z])(?i:wechat|weixin|vx|wx)|加[Vv薇](?![A-Za-z])|(?<![A-Za-z])[Vv]信)"
        r"(?:号码?|[账帐]号|(?i: ?id))?[ :=是为(\[【]{0,4}(?P<item>[A-Za-z][A-Za-z0-9_-]{5,19})(?![A-Za-z0-9_-])",
        _is_wechat,
    )._replace(numeric=False)
    # Before bank cards: an ID from Gansu begins with 62, as cards of UnionPay do.
    date = r"(?:0[1-9]|1[0-2])[ -]?(?:0[1-9]|[12]\d|3[01])"
    yield kind(
        "resident ID",
        "[身份证号]",
        rf"{PREFIX}[1-9]\d{{5}}[ -]?(?:18|19|20)\d{{2}}[ -]?{date}[ -]?\d{{3}}[ -]?[\dXx](?!\d)",
        _is_resident,
    )
    yield kind(
        "resident ID",
        "[身份证号]",
        rf"(?:身份证|证件)[^\d\n\]]{{0,8}}(?P<item>[1-9]\d{{7}}{date}\d{{3}})(?!\d)",
    )
    yield kind(
        "credit code",
        "[信用代码]",
        # GB 32100: the letters I, O, S, V and Z are not used.
        r"(?<![0-9A-Za-z])[0-9A-HJ-NPQRTUWXY]{2}\d{6}[0-9A-HJ-NPQRTUWXY]{10}(?![0-9A-Za-z])",
        _is_credit_code,
    )
    yield kind(
        # Called a card, a number needs no check digit: mistyped, it still is somebody's.
        "bank card",
        "[银行卡号]",
        rf"{BANK}[^\d\n\]]{{0,8}}(?P<item>\d{{4}}(?:[ -]?\d){{8,17}})(?!\d)",
    )
    # Grouped as cards print it, always by the same gap, or in American Express's 4, 6 and 5.
    groups = r"(?:\d{4}(?P<gap>[ -]?)\d{4}(?P=gap)\d{4}(?P=gap)\d{1,4}(?:(?P=gap)\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{5})"
    yield Kind("bank card", "[银行卡号]", re.compile(rf"{PREFIX}{groups}(?!\.?\d)", re.ASCII), _is_card)
    yield kind(
        "mobile",
        "[手机号]",
        rf"{PREFIX}{COUNTRY}1[3-9]\d[ -]?(?:\d{{4}}[ -]?\d{{4}}|\d{{3}}[ -]\d{{5}})(?!\.?\d)",
        _is_phone(MOBILE),
    )
    # Other countries' numbers, which phonenumbers tells apart; +86 is looked for above and below.
    foreign = r"(?<!\d)\+(?!86)\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d(?:[ -]?\d){5,13}(?!\d)"
    yield kind("mobile", "[手机号]", foreign, _is_phone(MOBILE))
    yield kind("landline", "[电话]", foreign, _is_phone((TYPES.FIXED_LINE,)))
    yield kind(
        "landline",
        "[电话]",
        rf"{PREFIX}(?:{COUNTRY}(?:\(0\d{{2,3}}\)|0\d{{2,3}})|(?:\+|00)86[ -]?[1-9]\d{{1,2}})[ -]{{0,2}}"
        r"[2-9]\d{2,3}[ -]?\d{4}(?P<extension> ?转 ?\d{1,5}|-\d{1,5})?(?!\d)",
        _is_phone((TYPES.FIXED_LINE,)),
    )
    yield kind(
        "landline",
        "[电话]",
        r"(?:电话|热线|传真|座机|(?i:tel|fax))[^\d\n\]]{0,6}(?P<item>[2-9]\d{2,3}[ -]?\d{4})(?![\d年])",
    )
    address = (
        r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)"
        r"|(?<![0-9A-Za-z:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])"
    )
    # Full-width points stand in columns of decimals, not in addresses.
    yield kind("IP", "[IP地址]", address, _is_address)._replace(folded=False)
    yield kind(
        "plate",
        "[车牌]",
        # No I and no O; six places behind the point are those of electric cars.
        rf"[{PROVINCES}][A-HJ-NP-Z][ ·•.-]?(?:[A-HJ-NP-Z0-9]{{5,6}}|[A-HJ-NP-Z0-9]{{4}}[挂学警港澳])(?![A-Za-z0-9])",
        _is_plate,
    )


KINDS = tuple(_kinds())

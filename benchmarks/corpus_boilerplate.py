"""Boilerplate lines as Chinese web pages have them, each site with a wording of its own."""

from __future__ import annotations

import random
from collections.abc import Callable

from corpus_spam import Maker, digits, person, titles, words

SITES = 20
NETS = "新华 东方 南方 长江 华夏 大众 金羊 红网 齐鲁 天山 北国 云岭 中原 燕赵 三晋 龙江 荆楚 八闽 巴渝 陇原"
SHARES = "新浪微博 腾讯微博 QQ空间 微信 人人网 豆瓣 百度贴吧 开心网 朋友圈 复制链接"


def labelled(site: random.Random) -> Maker:
    label = site.choice(
        ("责任编辑", "编辑", "责编", "网络编辑", "本文编辑", "审核", "录入员", "值班主任", "摄影")
    )
    form = site.choice(("{}：{}", "（{}：{}）", "【{}：{}】", "[{}: {}]", "{}:{}"))
    return lambda page: form.format(label, person(page))


def origin(site: random.Random) -> Maker:
    form = site.choice(
        ("{0} 来源：{1}", "来源：{1}  时间：{0}", "文章来源：{1}", "{0}　稿件来源：{1}　点击：{2}")
    )
    names = [name for name in words("nt") if name.endswith(("报", "社", "网", "台"))]
    return lambda page: form.format(date(page), page.choice(names), page.randint(1, 9999))


def neighbour(site: random.Random) -> Maker:
    form = site.choice(
        ("上一篇：{}", "下一篇：{}", "上一篇：{} 下一篇：{}", "上一条: {}", "« 前一篇：{}", "相关阅读：{}")
    )
    return lambda page: form.format(page.choice(titles()), page.choice(titles()))


def copyright_notice(site: random.Random) -> Maker:
    net = site.choice(NETS.split()) + site.choice(("网", "新闻网", "在线", "信息港"))
    form = site.choice(
        (
            "版权所有 © {1}-{2} {0} 未经授权禁止转载",
            "Copyright © {1}-{2} {0} 版权所有",
            "{0}版权与免责声明：凡本网注明“来源：{0}”的作品，{2}年起转载须经授权。",
            "本站（{0}）文章发布于{2}年，转载请注明出处",
        )
    )
    return lambda page: form.format(net, page.randint(1998, 2005), page.randint(2006, 2024))


def share_buttons(site: random.Random) -> Maker:
    names = site.sample(SHARES.split(), site.randint(3, 7))
    line = site.choice(("分享到：", "分享到", "一键分享 ", "喜欢就分享给朋友吧 ")) + site.choice(
        (" ", "|", "、")
    ).join(names)
    return lambda page: f"{line} {page.randint(0, 999)}"


def licence(site: random.Random) -> Maker:
    head = f"{site.choice('京沪粤苏浙鲁川鄂')}ICP备{digits(site, 8, 8)}号"
    end = site.choice(("", " 公网安备 {}号", " 增值电信业务经营许可证{}", " 违法和不良信息举报电话：{}"))
    return lambda page: head + f"-{page.randint(1, 9)}" + end.format(digits(page, 8, 11))


def counters(site: random.Random) -> Maker:
    form = site.choice(
        (
            "发布时间：{} 阅读次数：{}",
            "{} 点击：{} 次 字号：大 中 小",
            "更新于{}｜{}人浏览｜我要评论｜打印本页",
        )
    )
    return lambda page: form.format(date(page), page.randint(1, 99999))


def date(source: random.Random) -> str:
    form = source.choice(("{}-{:02d}-{:02d}", "{}年{}月{}日", "{}/{}/{}"))
    return form.format(source.randint(2003, 2024), source.randint(1, 12), source.randint(1, 28))


BOILERPLATE: dict[str, Callable[[random.Random], Maker]] = {
    "copyright notices": copyright_notice,
    "share buttons": share_buttons,
    "ICP licences": licence,
    "dates and visits": counters,
    "editors' names": labelled,
    "where it is from": origin,
    "titles before and after": neighbour,
}


def boilerplate(seed: int, each: int) -> list[tuple[str, str]]:
    """(kind, line): `each` of every kind, from so many sites, each with a wording of its own."""
    source = random.Random(seed)
    made = []
    for kind, design in BOILERPLATE.items():
        sites = [design(random.Random(source.random())) for _ in range(SITES)]
        made += [(kind, source.choice(sites)(source)) for _ in range(each)]
    return made

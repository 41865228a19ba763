"""Spam as Chinese web pages have it, made from a seed out of real words, titles and texts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache

from zhllama.demo.material import news, reviews, tagged_news

Maker = Callable[[random.Random], str]
TRADE = "公司 厂家 批发 价格 报价 哪家好 电话 多少钱 培训 维修 加盟 代理 设备 官网 品牌 排名 供应商 图片"
MENU = (
    "首页 新闻 国内 国际 社会 军事 财经 股票 基金 外汇 体育 中超 英超 娱乐 明星 电影 电视剧 音乐 科技 数码 手机 "
    "家电 汽车 报价 房产 家居 教育 高考 留学 健康 育儿 女性 时尚 星座 美食 旅游 游戏 动漫 读书 论坛 博客 微博 视频 "
    "直播 图片 专题 天气 彩票 邮箱 地图 登录 注册 帮助 联系我们 关于我们 网站地图 加入收藏 设为首页 广告服务 "
    "招聘信息 友情链接 法律声明 意见反馈 会员中心 我的订单 购物车 商家入驻 手机版 客户端下载 返回顶部 上一页 "
    "下一页 末页 更多 热门标签 最新文章 推荐阅读 产品中心 成功案例 在线留言"
)
ORNAMENTS = "★☆◆◇■□●○▲△▼▽♥♡♦♣♠→←↑↓⇒※〓═─━┃│┏┓┗┛╔╗╚╝✿❀✔✘✨🔥💰🎉🎁📞👉👈💥❤⭐🌹🚗💊📢🔔✅❗⚡💎🏆"
PROMISES = (
    "全场五折起 限时抢购 仅此一天 正品保证 货到付款 假一罚十 免费试用 包邮到家 买一送一 名额有限 错过再等一年 "
    "厂家直销 点击进入 立即领取 诚招代理 日入过千 零风险 轻松兼职 在家就能做 扫码进群 老客户推荐 质量三包 全国发货 "
    "新品上市 老板跑路清仓"
)
ADVERTS = {
    "gambling": (
        "{brand}娱乐城是亚洲最具信誉的在线博彩平台，{year}年成立至今服务会员超过{number}万人。",
        "真人视频百家乐、老虎机、体育投注应有尽有，注册即送{number}元彩金。",
        "本站由菲律宾政府颁发合法牌照，资金安全有保障，提款三分钟到账。",
        "时时彩、北京赛车、香港六合彩每天准时开奖，老玩家带你稳赚不赔。",
        "{person}在这里一个月就赢了{number}万元，买了新车还清了房贷。",
        "首存百分之百返利，天天签到抽红包，邀请好友再得佣金。",
        "美女荷官在线发牌，公平公正公开，手机电脑都能玩。",
        "想翻本的朋友不要犹豫，跟着导师的计划下注，回血上岸就在今天。",
        "澳门金沙、威尼斯人等多家赌场联手打造，信誉第一，大额无忧。",
        "福利彩票内部透码，一码中特，不中全额退款。",
        "斗牛、炸金花、德州扑克开房间，抽水低，可代理可加盟。",
        "玩家热线全天在线，充值秒到，出款从不限额。",
        "世界杯竞猜就选{brand}，赔率全网最高，串关还加奖。",
        "资深团队带你打流水，每天赚{number}元不是梦。",
    ),
    "loans": (
        "急用钱找我们，无抵押无担保，身份证就能贷，当天放款。",
        "{city}地区专业办理个人信用贷款，额度{number}万以内，利息低至三厘。",
        "黑户白户都可以做，不看征信不查流水，成功率百分之九十九。",
        "{person}先生经营饭店资金周转不开，通过我们半小时就拿到了{number}万元。",
        "信用卡代还、提额、套现，手续费全城最低，安全快捷。",
        "有房有车有保单有社保均可办理，前期不收任何费用，下款后再付款。",
        "学生贷、工薪贷、小额快速借款，手机操作三步搞定。",
        "我公司与{city}多家银行长期合作，专人上门服务，为客户严格保密。",
        "还在为买房首付发愁吗？公积金代提、垫资过桥一站式解决。",
        "手头紧？{city}正规金融公司，凭手机号码最高可借{number}万。",
        "汽车抵押不押车，房屋二次抵押利率低，审批快。",
        "空放私借，{city}本地人当面签约拿现金。",
        "花呗、白条变现，秒到账，诚信商家不跑单。",
        "网贷逾期、负债高都有办法，老师一对一出方案。",
    ),
    "certificates": (
        "专业办理各类证件，毕业证、学位证、驾驶证、房产证，质量与原件一致。",
        "{city}刻章办证，快速出证，先验货后付款，二十四小时在线。",
        "代开正规发票，餐饮、住宿、建筑、运输等各行业都有，可上网查询真伪。",
        "本公司拥有多年制作经验，采用进口设备，水印钢印防伪线一应俱全。",
        "英语四六级、计算机等级、会计从业资格证书无需考试直接拿证，网上可查。",
        "{person}女士在我处办理的本科学历，已顺利通过单位审核，升职加薪。",
        "户口本、结婚证、离婚证、出生证明均可定做，当天发货，全国包邮。",
        "包过包拿证，不过全额退款，{year}年以来已服务{number}位客户，绝无泄密。",
        "需要增值税专用票的老板可以长期合作，点数优惠，量大从优。",
        "{city}各类资质代办，建筑八大员、特种作业操作证快速取得。",
        "出售各银行卡四件套、对公账户、实名手机号码。",
        "自考专科本科，免试入学，学信网永久可查。",
        "仿真印章、公章、财务章，支持来图定做，隐蔽邮寄。",
        "驾照消分、补证、增驾，人不用到场，科目一保证通过。",
    ),
}
CONTACTS = (
    "咨询加微信：{id}，非诚勿扰。",
    "详情请加薇信{id}",
    "客服QQ：{digits}，二十四小时恭候。",
    "联系电话：1{digits}，{person}经理。",
    "V信同号1{digits}",
    "点击网址www.{id}.com马上体验。",
    "加扣扣{digits}备注来意",
)
# What a user would write down after reading a page of each, one word a line. Written with the first nine sentences
# of each kind of advert in view; the last five were added to them afterwards.
WORDS = (
    "娱乐城 博彩 百家乐 老虎机 投注 彩金 时时彩 北京赛车 六合彩 荷官 赌场 返利 下注 老玩家 "
    "无抵押 无担保 放款 黑户 征信 套现 提额 信用卡代还 小额快速 公积金代提 垫资 下款 信用贷款 "
    "办证 刻章 代开 发票 毕业证 学位证 房产证 包过 拿证 学历 钢印 专用票 出证 "
    "加微信 薇信 加扣扣 v信 客服qq 非诚勿扰 稳赚 日入过千 扫码进群"
)


@cache
def words(tag: str) -> list[str]:
    """The words of People's Daily with this part of speech: n nouns, ns places, nr names, nt organisations."""
    found = dict.fromkeys(re.findall(rf"(\S+)/{tag}(?=\s)", tagged_news()))
    return [word for word in found if 2 <= len(word) <= 8 and re.fullmatch("[一-龥]+", word)]


@cache
def titles() -> list[str]:
    """First lines of People's Daily's articles."""
    return [title for article in news() if 6 <= len(title := article.split("\n")[0]) <= 40]


@cache
def passages() -> list[str]:
    return [article for article in news() if len(article) >= 150]


@cache
def praise() -> list[str]:
    return [review for review in reviews() if 80 <= len(review) <= 250 and not {"{", "}"} & set(review)]


def digits(source: random.Random, least: int, most: int) -> str:
    return "".join(source.choices("0123456789", k=source.randint(least, most)))


def person(source: random.Random) -> str:
    """A surname and one or two characters of other names."""
    names = [name for name in words("nr") if len(name) <= 3]
    return source.choice("赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦许何吕张孔曹严华") + source.choice(names)[-2:]


def filled(source: random.Random, sentence: str) -> str:
    """A sentence with its gaps filled."""
    return sentence.format(
        brand="".join(source.choices("金银皇冠凯旋永利新葡京太阳鸿博星汇威尼斯万盛", k=2)),
        year=source.randint(1998, 2023),
        number=source.randint(2, 980),
        person=person(source),
        city=source.choice(words("ns")),
        id="".join(source.choices("abcdefghijkmnpqrstuvwxyz0123456789", k=source.randint(5, 10))),
        digits=digits(source, 8, 10),
    )


def repeated_phrases(source: random.Random) -> str:
    places, things = source.sample(words("ns"), 3), source.sample(words("n"), 4)
    phrases = [
        source.choice(places) + source.choice(things) + source.choice(TRADE.split())
        for _ in range(source.randint(2, 10))
    ]
    separator = source.choice(("，", " ", "、", "|", "\n", "_", ""))
    return separator.join(source.choices(phrases, k=source.randint(30, 200)))


def phrase_everywhere(source: random.Random) -> str:
    thing, ends = source.choice(words("n")), source.sample(TRADE.split(), 2)
    places = source.sample(words("ns"), source.randint(20, 120))
    separator = source.choice(("，", " ", "、", "|", "\n"))
    return separator.join(place + thing + source.choice(ends) for place in places)


def menu(source: random.Random) -> str:
    own = source.sample(words("n"), 40)
    items = MENU.split()
    items = source.sample(items, source.randint(15, len(items))) + source.sample(own, source.randint(0, 40))
    source.shuffle(items)
    return source.choice((" ", "\n", " | ", "|", " · ", " > ", "\t", " - ")).join(items)


def links(source: random.Random) -> str:
    mark = source.choice(("", "· ", "[图]", "> ", "- ", "•"))
    stamp = source.random() < 0.5
    return "\n".join(
        mark + title + (f" {source.randint(1, 12):02d}-{source.randint(1, 28):02d}" if stamp else "")
        for title in source.sample(titles(), source.randint(8, 50))
    )


def price(source: random.Random) -> str:
    name = source.choice(words("n")) + source.choice(("", digits(source, 2, 4)))
    end = source.choice(("有货", "缺货", "特价", "元/件", "元/吨"))
    return f"{name}\t￥{source.randint(9, 9999)}.00\t{end}"


def telephone(source: random.Random) -> str:
    return f"{source.choice(words('nt'))} 0{digits(source, 2, 3)}-{digits(source, 7, 8)}"


def lottery(source: random.Random) -> str:
    balls = " ".join(f"{ball:02d}" for ball in sorted(source.sample(range(1, 34), 6)))
    return f"第20{digits(source, 5, 5)}期 开奖号码 {balls} + {source.randint(1, 16):02d}"


def applicant(source: random.Random) -> str:
    return f"{person(source)} {source.choice('男女')} {source.choice(words('ns'))} {digits(source, 6, 11)}"


def table(source: random.Random) -> str:
    row = source.choice((price, telephone, lottery, applicant))
    return "\n".join(row(source) for _ in range(source.randint(8, 60)))


def ornaments(source: random.Random) -> str:
    """An advert in symbols; in half of them every other line is plain words."""
    lines, drawn, plain = [], source.sample(ORNAMENTS, source.randint(2, 8)), source.random() < 0.5
    for _ in range(source.randint(3, 14)):
        contact = filled(source, source.choice(CONTACTS))
        said = source.choice((*PROMISES.split(), contact, source.choice(words("n")) + "特卖"))
        edge = "".join(source.choices(drawn, k=source.randint(1, 8)))
        if plain and source.random() < 0.5:
            edge = ""
        spread = "".join(edge[:1] + character for character in said)
        lines.append(source.choice((edge + said + edge[::-1], edge + said, spread)))
    return "\n".join(lines)


def mojibake(source: random.Random) -> str:
    text = source.choice(passages())[: source.randint(80, 1500)]
    wrong = (
        lambda: text.encode().decode("gb18030", "ignore"),
        lambda: text.encode().decode("gb18030", "replace"),
        lambda: text.encode().decode("latin-1"),
        lambda: text.encode().decode("cp1252", "ignore"),
        lambda: text.encode("gb18030").decode("latin-1"),
        lambda: text.encode("gb18030").decode("big5", "ignore"),
        lambda: text.encode("gb18030").decode("utf-8", "replace"),
        lambda: text.encode("gb18030").decode("utf-8", "replace").encode().decode("gb18030", "ignore"),
        lambda: text.encode("gb18030").decode("shift-jis", "ignore"),
        lambda: text.encode("ascii", "replace").decode(),
    )
    return source.choice(wrong)()


def fluent(source: random.Random) -> str:
    sentences = ADVERTS[source.choice(sorted(ADVERTS))]
    said = source.sample(sentences, source.randint(3, 7))
    parts = [filled(source, sentence) for sentence in [*said, source.choice(CONTACTS)]]
    return source.choice(("", "\n")).join(parts)


def spun(source: random.Random) -> Maker:
    """One advert, again and again with other names, places and numbers; half of it is a customer's review."""
    body = source.sample(ADVERTS[source.choice(sorted(ADVERTS))], source.randint(3, 5))
    body = [source.choice(praise()), *body, source.choice(CONTACTS)]
    return lambda other: "\n".join(filled(other, sentence) for sentence in body)


KINDS: dict[str, Maker] = {
    "key phrases again and again": repeated_phrases,
    "a key phrase with every place": phrase_everywhere,
    "navigation menus": menu,
    "lists of links": links,
    "tables of prices, telephones, lottery numbers": table,
    "adverts in symbols and emoji": ornaments,
    "text decoded wrongly": mojibake,
    "fluent adverts": fluent,
}


def spam(seed: int, each: int, copies: int) -> list[tuple[str, str]]:
    """(kind, text): `each` of every kind; of spun adverts `copies` of every one."""
    source = random.Random(seed)
    made = [(kind, make(source)) for kind, make in KINDS.items() for _ in range(each)]
    for _ in range(each // copies):
        again = spun(source)
        made += [("one advert with other names and numbers", again(source)) for _ in range(copies)]
    return made

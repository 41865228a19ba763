"""Translation pairs as instructions: both directions, in many words."""

from __future__ import annotations

from zlib import crc32

# {} stands for the text; the Chinese and the English wordings of each direction take turns.
TO_CHINESE = (
    "请把下面的英文翻译成中文：\n{}",
    "Translate the following sentence into Chinese:\n{}",
    "将以下内容译为中文。\n\n{}",
    "What is this in Chinese?\n\n{}",
    "这段英文用中文怎么说？\n{}",
    "Please give the Chinese translation.\n{}",
    "{}\n\n把上面的英文翻译成汉语。",
    "{}\n\nTranslate the text above into Chinese.",
    "英译中：{}",
    "English to Chinese: {}",
    "请写出下面这句话的中文译文。\n“{}”",
    "How would you say this in Chinese: “{}”",
)
TO_ENGLISH = (
    "请把下面的中文翻译成英文：\n{}",
    "Translate the following sentence into English:\n{}",
    "将以下内容译为英文。\n\n{}",
    "What is this in English?\n\n{}",
    "这段中文用英语怎么说？\n{}",
    "Please give the English translation.\n{}",
    "{}\n\n把上面的中文翻译成英语。",
    "{}\n\nTranslate the text above into English.",
    "中译英：{}",
    "Chinese to English: {}",
    "请写出下面这句话的英文译文。\n“{}”",
    "How would you say this in English: “{}”",
)


def translation_request(english: str, chinese: str) -> tuple[str, str]:
    """The request and the reply that a pair becomes.

    Direction and wording are drawn by the pair's own text, so a pair stays the same request in any file and place,
    and a file gives as many rows as it has pairs: about half of them each way.
    """
    # Not hash(), which Python salts for each process; a lone surrogate is no reason to stop.
    drawn = crc32(f"{english}\n{chinese}".encode("utf-8", "surrogatepass"))
    wordings, text, reply = (TO_CHINESE, english, chinese) if drawn % 2 else (TO_ENGLISH, chinese, english)
    # The lowest bit has chosen the direction; `replace`, because a text may hold braces.
    return wordings[drawn // 2 % len(wordings)].replace("{}", text), reply

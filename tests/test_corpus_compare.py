"""The forms in which texts are compared."""

from zhllama.corpus.compare import compact, folded, letters, without_space


def test_white_space_is_all_that_goes() -> None:
    assert without_space(" Ａ b\n１，\u3000中") == "Ａb１，中"


def test_case_and_width_do_not_count_in_a_folded_text() -> None:
    assert folded("ＶＰＮ 用Vpn\n") == "vpn 用vpn\n"


def test_white_space_case_and_width_do_not_count_in_a_compact_text() -> None:
    assert compact(" Ａ b\n１，\u3000中") == "ab1,中"


def test_signs_count_in_a_compact_text_and_not_among_letters() -> None:
    assert compact("3 + 5 = ?") != compact("3 - 5 = ?")
    assert letters("3 + 5 = ?") == letters("3 - 5 = ?") == "35"


def test_texts_are_compared_by_letters_and_digits() -> None:
    assert letters("《ABc》，第１号：\n　好_") == "abc第１号好"

"""What is needed from an extra and missing: one line that says what to install."""

from importlib.metadata import requires

import pytest

from zhllama import extras
from zhllama.config import UserError
from zhllama.extras import is_installed, packages_of, require_extra

METADATA = [
    "torch>=2.6",
    "zhllama[report]; extra == 'clean'",
    'data-trove[io]>=1; extra == "clean"',
    "xxhash<4; python_version > '3' and extra == 'clean'",
    "matplotlib; extra == 'report'",
    "zhllama[clean,report]; extra == 'all'",
]


@pytest.fixture(autouse=True)
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda name: METADATA)
    monkeypatch.setattr(extras, "is_installed", lambda name: name == "xxhash")


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("report", ["matplotlib"]),
        ("clean", ["matplotlib", "data-trove", "xxhash"]),
        ("all", ["matplotlib", "data-trove", "xxhash"]),
        ("cle", []),
    ],
)
def test_an_extra_brings_what_the_metadata_says(extra: str, packages: list[str]) -> None:
    assert packages_of(extra) == packages


def test_without_metadata_nothing_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda name: None)
    assert packages_of("clean") == []
    monkeypatch.setattr(extras, "requires", lambda name: requires("no-such-package"))
    assert packages_of("clean") == []


def test_the_line_names_the_extra_and_what_is_missing() -> None:
    with pytest.raises(UserError) as refused:
        require_extra("clean", "clean")
    line = (
        "clean needs the extra [clean]: pip install 'zhllama[clean]' (not installed: matplotlib, data-trove)"
    )
    assert str(refused.value) == line


def test_the_line_stays_short() -> None:
    with pytest.raises(UserError, match=r"\(not installed: a, b, c, \.\.\.\)$"):
        require_extra("clean", "clean", "a", "b", "c", "d")


def test_only_the_packages_named_are_needed() -> None:
    require_extra("a.jsonl", "clean", "xxhash")
    with pytest.raises(UserError, match=r"a\.parquet needs .* \(not installed: pyarrow\)"):
        require_extra("a.parquet", "clean", "pyarrow")


def test_installed_is_what_has_metadata() -> None:
    assert is_installed("PyYAML") and is_installed("pyyaml")
    assert not is_installed("no-such-package")

"""Write docs/modules.md: every module of zhllama/ and benchmarks/ in one line, the first of its docstring."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Modules

What every module is for, in the first line of its own docstring. `make docs` writes this page, and a test says when it
has to run again. How the folders fit together: [design.md](design.md).
"""


def first_line(file: Path) -> str:
    """The first line of a module's docstring; empty where it has none."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def section(folder: Path) -> str:
    """The modules of one folder, opened by the line of its `__init__.py` where it is a package."""
    lines = [f"\n## {folder.relative_to(ROOT)}/\n\n"]
    modules = sorted(folder.glob("*.py"))
    lines += [f"{first_line(file)}\n\n" for file in modules if file.name == "__init__.py"]
    lines += [f"- `{file.name}`: {first_line(file)}\n" for file in modules if file.name != "__init__.py"]
    return "".join(lines)


def module_map() -> str:
    """The whole page."""
    folders = {file.parent for top in ("zhllama", "benchmarks") for file in (ROOT / top).rglob("*.py")}
    return HEAD + "".join(section(folder) for folder in sorted(folders))


if __name__ == "__main__":
    (ROOT / "docs/modules.md").write_text(module_map(), encoding="utf-8")

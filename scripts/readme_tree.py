"""Writes the tree in the README from the first line of each module: `--check` compares it.

So the README cannot list a file that is gone, miss one that is there, or say of it what it no
longer says of itself.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
PACKAGES = ("policies", "replicas", "replay", "orchestrator", "dashboards", "benchmarks")
COLUMN = 34


def tree() -> str:
    lines: list[str] = []
    for package in PACKAGES:
        if (ROOT / package / "__init__.py").is_file():
            _add_folder(ROOT / package, 0, lines)
    return "\n".join(lines) + "\n"


def _add_folder(folder: Path, depth: int, lines: list[str]) -> None:
    lines.append(_row(folder.name + "/", _summary(folder / "__init__.py"), depth))
    for module in sorted(folder.glob("*.py")):
        if module.name != "__init__.py":
            mark = " [R]" if _imports_ray(module) else ""
            lines.append(_row(module.name + mark, _summary(module), depth + 1))
    for inner in sorted(folder.iterdir()):
        if (inner / "__init__.py").is_file():
            _add_folder(inner, depth + 1, lines)


def _row(name: str, text: str, depth: int) -> str:
    indent = "  " * depth
    return f"{indent}{name:<{COLUMN - len(indent)}}{text}".rstrip()


def _summary(module: Path) -> str:
    """The docstring's first sentence, without its full stop."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].split(": `python")[0].rstrip(".")


def _imports_ray(module: Path) -> bool:
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return any(
        (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "ray" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
        for node in nodes
    )


def rewritten(readme: str) -> str:
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + tree() + END + tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the README differs")
    arguments = parser.parse_args()
    before = README.read_text(encoding="utf-8")
    after = rewritten(before)
    if arguments.check and before != after:
        sys.exit("README.md: the tree is out of date; run python scripts/readme_tree.py")
    if not arguments.check:
        README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The rules of dependency, held by the imports themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("policies", "replicas", "replay", "orchestrator")
MAY_IMPORT_RAY = {
    "replicas/deployment.py",
    "orchestrator/controller.py",
    "orchestrator/app.py",
}
IMPURE = {"ray", "torch", "time", "os", "asyncio", "threading", "socket", "random", "logging"}
SOURCES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all modules a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_package_imports_one_above_it(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"benchmarks", "tests", "dashboards"}
    assert not imported(path) & above


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_marked_files_import_ray(path: Path) -> None:
    if str(path.relative_to(ROOT)) not in MAY_IMPORT_RAY:
        assert "ray" not in imported(path)


@pytest.mark.parametrize("path", sorted((ROOT / "policies").rglob("*.py")), ids=lambda p: p.name)
def test_policies_are_pure(path: Path) -> None:
    assert not imported(path) & IMPURE


@pytest.mark.parametrize("path", sorted((ROOT / "replay").rglob("*.py")), ids=lambda p: p.name)
def test_replay_takes_nothing_from_replicas_but_the_governor(path: Path) -> None:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    modules = {n.module or "" for n in tree if isinstance(n, ast.ImportFrom)}
    assert {m for m in modules if m.startswith("replicas")} <= {"replicas.governor"}
    assert not imported(path) & {"torch", "ray"}


def test_importing_the_orchestrator_needs_no_cluster_and_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, orchestrator; print({'ray', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr

"""Import rules: who may import what, and what the command line must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sema
import sema_bench

SEMA = Path(sema.__file__).parent
BENCH = Path(sema_bench.__file__).parent

#: The folders of ``sema_bench``, lowest first: a file imports from its own folder and from those before it.
ORDER = (
    *("text", "errors", "statistics", "spec", "machine", "store", "analysis", "data", "counting", "worker", "driver"),
    *("cluster", "report", "training", "run", "gate", "studies", "cli", "pytest_plugin", "__main__"),
)


def loaded_after(code: str) -> set[str]:
    """Return the top-level packages in ``sys.modules`` after ``code`` ran in a fresh interpreter."""
    probe = f"{code}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name → file of every module of ``package``; a folder goes by its own name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_between(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module → the modules it imports, wherever the statement stands: in a function, or for types alone."""
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in imported:
                while target and target not in modules:
                    target = target.rpartition(".")[0]
                graph[name] |= {target} - {"", name}
    return graph


def circles_of(graph: dict[str, set[str]]) -> list[str]:
    """Nodes that remain when those without imports are taken away again and again."""
    left = {name: set(targets) for name, targets in graph.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("package", [SEMA, BENCH], ids=lambda path: path.name)
def test_files_import_in_no_circle(package: Path) -> None:
    graph = imports_between(modules_of(package))
    assert any(graph.values())
    assert not circles_of(graph)


def test_a_circle_would_be_found() -> None:
    assert circles_of({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"c"}}) == ["a", "b", "c", "d"]


def test_folders_import_downward_alone() -> None:
    graph = imports_between(modules_of(BENCH))
    rank = {name: number for number, name in enumerate(ORDER)}
    folder_of = {name: name.split(".")[1] for name in graph if "." in name}
    assert set(folder_of.values()) == set(ORDER)
    upward = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets & folder_of.keys()
        if rank[folder_of[target]] > rank[folder_of[name]]
    ]
    assert not upward


def test_few_files_stand_at_the_root() -> None:
    assert len(list(BENCH.glob("*.py"))) <= 6


@pytest.mark.parametrize("path", sorted(SEMA.rglob("*.py")), ids=lambda path: path.name)
def test_sema_imports_torch_and_itself_alone(path: Path) -> None:
    optional = {
        "checkpoints.py": {"safetensors"},
        "scan_backends.py": {"mamba_ssm"},
        "scan_triton.py": {"triton"},
        "windows_triton.py": {"triton"},
        "timm_models.py": {"timm"},
    }
    allowed = sys.stdlib_module_names | {"torch", "sema"} | optional.get(path.name, set())
    assert {name.partition(".")[0] for name in imports_of(path)} <= allowed


@pytest.mark.parametrize("folder", ["analysis", "report"])
def test_analysis_and_report_import_no_torch(folder: str) -> None:
    for path in (BENCH / folder).glob("*.py"):
        assert not {name for name in imports_of(path) if name.partition(".")[0] == "torch"}, path


def test_import_sema_loads_neither_torch_nor_the_suite() -> None:
    assert not {"torch", "sema_bench", "numpy"} & loaded_after("import sema")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["scale", "--help"],
        ["list", "models"],
        ["list", "suites"],
        ["scale", "--dry-run", "--res", "224..1024"],
    ],
    ids=" ".join,
)
def test_what_answers_at_once_loads_no_torch(arguments: list[str]) -> None:
    code = (
        "from sema_bench.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as stop: assert not stop.code, stop.code"
    )
    loaded = loaded_after(code)
    assert "sema_bench" in loaded
    assert "torch" not in loaded
    if "--dry-run" not in arguments:
        assert not {"pandas", "matplotlib", "scipy"} & loaded


def test_the_driver_of_a_run_loads_no_torch() -> None:
    """Its threads would disturb what the workers time."""
    assert "torch" not in loaded_after("import sema_bench.run")


def test_cells_and_records_are_leaves() -> None:
    assert not {"torch", "pandas", "numpy", "typer", "rich", "pydantic"} & loaded_after("import sema_bench.spec.cell, sema_bench.spec.record")

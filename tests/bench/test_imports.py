"""Test import rules: who may import what, and what the command line must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sema
import sema_bench

SEMA = Path(sema.__file__).parent
BENCH = Path(sema_bench.__file__).parent

#: The folders and files of each package, lowest first. A file imports from its own folder and those before it.
ORDER = {
    BENCH: "text errors statistics spec machine store analysis data counting worker driver cluster report training run "
    "gate studies cli pytest_plugin __main__",
    SEMA: "macs registry checkpoint_files checkpoint_layout checkpoint_keys checkpoint_pickles layers kernels "
    "attention models model_name checkpoints inference build feature_maps timm_models",
}
#: Limit on the imports that are deferred because they are optional or slow.
MOST_DEFERRED = 60


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
    """Map the dotted name of every module of ``package`` to its file; a folder goes by its own name."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_between(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Map each module to the modules it imports, including imports in functions and for types alone."""
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
    """Return the nodes that remain after nodes without imports are removed again and again."""
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


@pytest.mark.parametrize("package", [SEMA, BENCH], ids=lambda path: path.name)
def test_folders_import_downward_alone(package: Path) -> None:
    graph = imports_between(modules_of(package))
    order = ORDER[package].split()
    rank = {name: number for number, name in enumerate(order)}
    folder_of = {name: name.split(".")[1] for name in graph if "." in name}
    assert set(folder_of.values()) == set(order)
    upward = [
        f"{name} imports {target}"
        for name in folder_of
        for target in graph[name] & folder_of.keys()
        if rank[folder_of[target]] > rank[folder_of[name]]
    ]
    assert not upward


def test_few_files_stand_at_the_root() -> None:
    assert len(list(BENCH.glob("*.py"))) <= 6


def functions_of(*packages: Path) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for package in packages:
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield path, node


def is_triton_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


def test_few_imports_are_deferred() -> None:
    deferred = {
        (path, node.lineno)
        for path, function in functions_of(SEMA, BENCH)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert deferred
    assert len(deferred) <= MOST_DEFERRED


def test_functions_take_few_parameters() -> None:
    long = []
    for path, function in functions_of(SEMA, BENCH):
        if is_triton_kernel(function):  # its pointers and sizes cannot be grouped
            continue
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        if len([name for name in names if name not in ("self", "cls")]) > (12 if "cli" in path.parts else 8):
            long.append(f"{path.name}:{function.lineno} {function.name}")
    assert not long


@pytest.mark.parametrize("path", sorted(SEMA.rglob("*.py")), ids=lambda path: path.name)
def test_sema_imports_torch_and_itself_alone(path: Path) -> None:
    optional = {
        "checkpoints.py": {"safetensors"},
        "scan_backends.py": {"mamba_ssm"},
        "scan_triton.py": {"triton"},
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
        ["plan", "quick", "--no-memory"],
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
    if not {"--dry-run", "--no-memory"} & set(arguments):
        assert not {"pandas", "matplotlib", "scipy"} & loaded


def test_commands_import_at_their_top() -> None:
    """A command's file is loaded when the command is called. It defers at most one import, which keeps --help quick."""
    deferred = {
        path.name: sum(
            isinstance(node, ast.Import | ast.ImportFrom)
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
        )
        for path in (BENCH / "cli").glob("*.py")
    }
    assert max(deferred.values()) <= 1
    assert sum(deferred.values()) <= 6


def test_the_driver_of_a_run_loads_no_torch() -> None:
    """torch's threads would disturb the timing of the workers."""
    assert "torch" not in loaded_after("import sema_bench.run")


def test_cells_and_records_are_leaves() -> None:
    assert not {"torch", "pandas", "numpy", "typer", "rich", "pydantic"} & loaded_after(
        "import sema_bench.spec.cell, sema_bench.spec.record"
    )

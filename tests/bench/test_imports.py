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
    assert "torch" not in loaded_after("import sema_bench.experiment, sema_bench.report.folder")


def test_the_schema_is_a_leaf() -> None:
    assert not {"torch", "pandas", "numpy", "typer", "rich", "pydantic"} & loaded_after("import sema_bench.schema")

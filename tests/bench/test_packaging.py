"""Test the distribution: its metadata, contents, the files around it, and another package named ``sema`` beside it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sema_bench
from sema_bench.spec import sema_package

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
NOTEBOOK = ROOT / "docs/notebooks/quickstart.ipynb"
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

#: Files other than Python that the installed package reads.
DATA = (
    "sema/kernels/channel_attention.cpp",
    "sema/kernels/linear_attention.cpp",
    "sema/kernels/products.h",
    "sema/kernels/selective_scan.cpp",
    "sema/kernels/token_sum.cpp",
    "sema/kernels/vectors.h",
    "sema/kernels/window_attention.cpp",
    "sema_bench/_suites/quick.toml",
    "sema_bench/_suites/scaling.toml",
    "sema_bench/report/page/page.css",
    "sema_bench/report/page/page.html",
    "sema_bench/report/page/page.js",
    "sema_bench/studies/verification/published.csv",
)


def read_yaml(path: Path) -> Any:
    return pytest.importorskip("yaml").safe_load(path.read_text(encoding="utf-8"))


def run_python(*arguments: str, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with ``path`` first on its import path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


# Metadata


def test_classifiers_name_the_versions_that_ci_tests() -> None:
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert claimed == read_yaml(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_licence_is_a_file_and_an_expression_without_classifier() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert not [line for line in PROJECT["classifiers"] if line.startswith("License")]


@pytest.mark.parametrize("target", [*PROJECT["scripts"].values(), *PROJECT["entry-points"]["pytest11"].values()])
def test_entry_points_lead_somewhere(target: str) -> None:
    module, _, function = target.partition(":")
    assert importlib.util.find_spec(module)
    assert not function or callable(getattr(importlib.import_module(module), function))


def test_citation_has_the_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == sema_bench.__version__
    assert citation["license"] == PROJECT["license"]


def test_a_release_has_absolute_links_and_project_urls(tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    script = ROOT / ".github/address_links.py"
    repository = "https://github.com/owner/name"
    subprocess.run([sys.executable, str(script), repository, "v1"], cwd=tmp_path, check=True, timeout=60)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all(address.startswith(repository) for address in project.pop("urls").values())
    assert project == PROJECT
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", (tmp_path / "README.md").read_text(encoding="utf-8"))
    assert all(address.startswith("https://") for _, address in links)
    (picture,) = (address for image, address in links if image)
    assert picture.startswith(f"{repository}/raw/v1/results/")
    before = dict.fromkeys(re.findall(r"\]\((?!https)([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert all(any(address.endswith(f"/v1/{path}") for _, address in links) for path in before)


# Files around it


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_what_github_asks_for(path: Path) -> None:
    form = read_yaml(path)
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    names = [field["id"] for field in fields]
    assert len(names) == len(set(names))
    assert all(field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_rights(path: Path) -> None:
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_releases_are_checked_and_published_without_a_token() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert "twine check --strict" in text
    assert read_yaml(ROOT / ".github/workflows/release.yml")["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
    assert "password" not in text


def test_docker_copies_all_that_the_build_reads() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.*) /\S+$", text, re.M) for word in line.split()}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert copied == {"pyproject.toml", PROJECT["readme"], "LICENSE", *wheel["packages"], *wheel["force-include"]}
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / "README.md", NOTEBOOK], ids=lambda path: path.name)
def test_cpu_builds_of_torch_and_torchvision_come_together(path: Path) -> None:
    """If only torch were a CPU build, an extra that needs torchvision would install a CUDA build of torch over it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if CPU_INDEX in line and path.stem != "release":  # a release is installed without extras
            assert "torch torchvision " in line


# The notebook


def test_notebook_is_stored_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed; the extra 'notebook' has it")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed; the extra 'notebook' has it")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    for kind in ("text/html", "image/svg+xml", "image/png"):
        assert any(kind in one for one in data)
    assert (tmp_path / "report.html").stat().st_size > 10_000


# Another package named sema


@pytest.fixture
def other_sema(tmp_path: Path) -> Path:
    """A folder with a package ``sema`` that is not ours; ``import sema`` works but has nothing of ours."""
    folder = tmp_path / "elsewhere"
    (folder / "sema").mkdir(parents=True)
    (folder / "sema/__init__.py").touch()
    return folder


def test_another_sema_on_the_path_is_one_line_and_exit_code_2(other_sema: Path, tmp_path: Path) -> None:
    done = run_python("-m", "sema_bench", "list", "models", path=other_sema, cwd=tmp_path)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sema-bench: {other_sema / 'sema/__init__.py'} hides the package 'sema' of sema-bench; ")


def test_the_other_distribution_is_named(other_sema: Path, tmp_path: Path) -> None:
    metadata = other_sema / "sema-0.1.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sema\nVersion: 0.1.3\n")
    done = run_python("-m", "sema_bench", "--version", path=other_sema, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "belongs to another distribution, sema 0.1.3" in line
    assert "run `pip uninstall sema`, then reinstall sema-bench" in line


def test_python_gets_an_import_error_and_other_tests_of_the_environment_run(other_sema: Path, tmp_path: Path) -> None:
    code = """
import sys
import sema_bench, sema_bench.pytest_plugin  # pytest loads the latter everywhere
try:
    import sema_bench.run
except ImportError as problem:
    assert "hides the package 'sema'" in str(problem)
else:
    raise AssertionError
assert "torch" not in sys.modules
"""
    done = run_python("-c", code, path=other_sema, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["missing", "without __init__.py"])
def test_a_sema_that_was_uninstalled_is_incomplete(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sema_package.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(sema_package.WrongPackageError, match="missing or incomplete; reinstall sema-bench"):
        sema_package.check_sema_package()


def test_the_check_imports_nothing() -> None:
    code = "import sys, sema_bench.spec; assert 'sema' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The distribution


@pytest.mark.slow
def test_the_wheel_has_all_that_is_read_at_run_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert set(DATA) <= names
    suites = {f"sema_bench/_suites/{path.name}" for path in (ROOT / "suites").glob("*.toml")}
    assert suites <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"sema", "sema_bench"}
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


@pytest.mark.slow
def test_wheel_and_sdist_pass_twine(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip("twine", reason="twine is not installed")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)], check=True, timeout=300)
    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) == 2
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, timeout=120)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if name.count("/") > 1}
    assert {"sema", "sema_bench", "suites", "tests", "docs"} <= folders
    assert sdist.stat().st_size < 5e6  # results stay in the repository

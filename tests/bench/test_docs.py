"""Test the documentation: its commands work, its reference covers the code, its links lead somewhere."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_support import invoke

from sema_bench import errors
from sema_bench.cli.commands import COMMANDS, LazyCommand
from sema_bench.report.formats import column_descriptions
from sema_bench.spec.cell import AXES
from sema_bench.spec.probes import PROBES
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.record import STATUSES
from sema_bench.spec.suite import GateTable, Suite, list_suites

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOOKS = DOCS / "_hooks"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _blocks(text: str, *kinds: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind in kinds]


def _commands(block: str) -> list[list[str]]:
    """Return the arguments of each call of sema-bench in a shell block."""
    calls = []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"^\w+\$ +", "", line)  # a prompt
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", ";"):
                ends = word.endswith(";")
                words.append(word.rstrip(";"))
                if not ends:
                    continue
            if words and Path(words[0]).name == "sema-bench":
                calls.append(words[1:])
            words = []
    return calls


def _shown(text: str) -> list[list[str]]:
    """Return the arguments of all calls on a page, including those within a sentence."""
    calls = [call for block in _blocks(text, "sh", "console", "text") for call in _commands_of_shells(block)]
    inline = re.findall(r"`(sema-bench -?[a-z][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [*calls, *(shlex.split(call)[1:] for call in inline)]


def _commands_of_shells(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [call for line in lines if re.match(r"(\w+\$ +)?(\S*/)?sema-bench ", line) for call in _commands(line)]


SWEEPS = sorted(
    {
        shlex.join(call)
        for text in PAGES.values()
        for block in _blocks(text, "sh")
        for call in _commands(block)
        if call[0] in ("scale", "run", "plan")
        and not {"--resume", "--checkpoint", "--executor"} & {*call}
        and not any(word in " ".join(call) for word in ("gpu", "my_model", "timm:"))
    }
)
QUICK = sorted(
    {
        shlex.join(call)
        for page, text in PAGES.items()
        if page != "quickstart.md"
        for block in _blocks(text, "sh")
        for call in _commands(block)
        if call[0] in ("compare", "export", "show", "report", "history", "list")
    }
)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages of the reference, with their tables."""
    sys.path.insert(0, str(HOOKS))
    try:
        import reference
    finally:
        sys.path.remove(str(HOOKS))
    made: dict[str, str] = reference.pages()
    return made


# The reference


def _rows(page: str) -> dict[str, str]:
    """Map the first cell of each table row to the row."""
    return {match[1]: match[0] for match in re.finditer(r"^\| `?([^`|]+?)`? \|.*$", page, re.MULTILINE)}


def test_the_reference_has_every_command_and_option(pages: dict[str, str]) -> None:
    page = pages["reference/cli.md"]
    for name, entry in COMMANDS.items():
        if not entry.target:
            continue
        section = page.partition(f"\n## sema-bench {name}\n")[2].partition("\n## ")[0]
        command: Any = LazyCommand(name.rpartition(" ")[2], entry).load()
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert re.search(rf"{re.escape(option)}\b", section, re.IGNORECASE), f"{name} {option}"


def test_the_reference_has_every_column_with_its_type_and_unit(pages: dict[str, str]) -> None:
    rows = _rows(pages["reference/columns.md"])
    for name, (kind, unit, _) in column_descriptions().items():
        assert rows[name].startswith(f"| `{name}` | {kind} | {unit} | ")
        assert len(rows[name]) > len(f"| `{name}` | {kind} | {unit} |  |")


def test_the_reference_has_every_axis_with_its_choices(pages: dict[str, str]) -> None:
    rows = _rows(pages["reference/axes.md"])
    for axis in AXES.values():
        for word in (axis.option, axis.suite_key, *axis.choices):
            assert f"`{word}`" in rows[axis.name]


def test_the_guide_explains_every_axis(pages: dict[str, str]) -> None:
    section = PAGES["guide/sweeps.md"].partition("\n## Axes\n")[2]
    for axis in AXES.values():
        if axis.crossed and axis.name not in ("data", "batch"):  # images have their own page; batches are numbers
            assert f"`{axis.option}" in section
        if axis.name == "mode":
            assert all(f"{choice}`" in section for choice in axis.choices)


def test_the_reference_has_every_key_of_a_suite(pages: dict[str, str]) -> None:
    top, _, rest = pages["reference/suites.md"].partition("\n## Training\n")
    assert set(Suite.model_fields) <= _rows(top).keys()
    training, _, rest = rest.partition("\n## Gate\n")
    assert set(Recipe.model_fields) <= _rows(training).keys()
    assert {*GateTable.model_fields, *PROBES, *list_suites()} <= _rows(rest).keys()


def test_the_reference_has_every_status_and_exit_code(pages: dict[str, str]) -> None:
    page = pages["reference/exit-codes.md"]
    rows = _rows(page)
    codes = {code for name, code in vars(errors).items() if name.startswith("EXIT_")}
    codes |= {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and hasattr(kind, "exit_code")]
    assert {*map(str, codes), *STATUSES, *(kind.__name__ for kind in kinds)} <= rows.keys()
    listed = set(map(int, re.findall(r"^\| (\d+) \|", page, re.MULTILINE)))
    assert listed == codes | {kind.exit_code for kind in kinds}


# The commands


def _parse_all(text: str) -> None:
    for call in _shown(text):
        if call[0].startswith("-") or " ".join(call) in COMMANDS:
            continue
        name = call[0] if COMMANDS[call[0]].target else " ".join(call[:2])
        arguments = call[len(name.split()) :]
        if arguments and "--help" not in arguments:
            LazyCommand(name.rpartition(" ")[2], COMMANDS[name]).make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page: str) -> None:
    _parse_all(PAGES[page])


def test_every_command_of_the_reference_parses(pages: dict[str, str]) -> None:
    for text in pages.values():
        _parse_all(re.sub(r"^```text\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))  # without usage lines


@pytest.mark.parametrize("command", SWEEPS)
def test_every_sweep_of_the_docs_has_a_plan(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)
    while "--run" in arguments:  # --dry-run makes no folder
        del arguments[arguments.index("--run") : arguments.index("--run") + 2]
    arguments += ["--no-memory"] if arguments[0] == "plan" else [] if "--dry-run" in arguments else ["--dry-run"]
    code, shown, err = invoke(*arguments)
    assert (code, bool(shown)) == (0, True), err


@pytest.mark.parametrize("command", QUICK)
def test_the_commands_that_read_runs_work(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command)
    if arguments[0] == "report":
        arguments = [*arguments[:2], "-o", str(tmp_path / "report.html")]
    code, _, err = invoke(*arguments)
    assert code == 0, err


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for kind, body in FENCE.findall(PAGES["quickstart.md"]):
        if kind == "python" and "def build" in body:
            (tmp_path / "my_model.py").write_text(body)
        elif kind == "python":
            subprocess.run([sys.executable, "-c", body], cwd=tmp_path, check=True)
        elif kind == "sh" and "pip install" not in body:
            # Leave out the roofline: it is an error if a busy machine measures its peaks too low.
            body = re.sub(r"(scale --models \S+)", r"\1 --probes params,macs,memory,throughput", body)
            subprocess.run(["bash", "-ec", body], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "report.html").stat().st_size > 10_000


# The pages


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_compiles(page: str) -> None:
    for block in _blocks(PAGES[page], "python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index.md"])
def test_a_page_opens_with_a_sentence_and_something_to_try(page: str) -> None:
    opening = re.sub(r"\A---\n.*?\n---\n", "", PAGES[page], flags=re.DOTALL).strip().partition("\n## ")[0]
    assert re.match(r"# .+\n\n\w.+\n", opening)
    assert "```" in opening or page == "quickstart.md"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str, pages: dict[str, str]) -> None:
    made = {*pages, "changelog.md", "contributing.md"}
    for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", PAGES[page]):
        path = os.path.normpath((DOCS / page).parent / target)
        assert Path(path).exists() or Path(path).relative_to(DOCS).as_posix() in made, target


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "columns" / "index.html").is_file()
    scaling = (tmp_path / "site" / "results" / "scaling" / "index.html").read_text(encoding="utf-8")
    assert '<td class="short">0.95 [0.92, 0.98]</td>' in scaling, "a cell is never broken over two lines"
    assert re.search(r'<a href="[^"]+latency\.svg"><img ', scaling), "a touch opens a plot"

"""Test hostile input from tables: the command, the exit code, the message, and text that must appear nowhere.

The tables are ``hostile/*.toml``; ``hostile_support.py`` makes what text cannot hold. A case runs in an empty folder:

- ``run``: the command line, as a string that a shell would split, or as a list;
- ``files``: name → text; ``make``: name → a maker of ``hostile_support.MAKERS``;
- ``env``: variables to set; ``unset``: variables to remove;
- ``code``: the exit code; ``says``: a pattern that must match stderr if the code is 2 or 4, else any output;
- ``never``: texts that neither the output nor any written file may hold;
- ``never_like``: patterns that no line of these may match;
- ``csv``: outputs (``-``: stdout) that are tables in which no cell is a formula;
- ``keeps``: files that must not change; ``absent``: paths that must not exist afterwards;
- ``verdict``: the code is not a mistake's but that of a gate's verdict, which is on stdout;
- ``process``: runs in its own process; ``slow``: the same, and only under ``-m faults``.

Every case ends within LIMIT_S seconds, without a traceback, and says what is wrong in one line.
"""

from __future__ import annotations

import csv
import io
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from command_support import invoke
from hostile_support import MAKERS

from sema_bench.spec.suite import read_toml

TABLES = sorted(Path(__file__).with_name("hostile").glob("*.toml"))
#: No input may make the tool take longer, or more memory, before it answers.
LIMIT_S, LIMIT_BYTES = 20, 2 << 30
_USER_MISTAKES = (2, 4)
BINARY = (".png", ".parquet", ".safetensors")
#: Text that a spreadsheet takes for a formula; a number may have a sign.
FORMULA = re.compile(r"[\t\n\r ]*([=@＝＠]|[-+－＋](?![\d.]))")


def _cases() -> Iterator[Any]:
    for table in TABLES:
        for number, case in enumerate(read_toml(table.read_text(encoding="utf-8"))["case"], 1):
            marks = [pytest.mark.faults] if case.get("slow") else []
            yield pytest.param(case, marks=marks, id=f"{table.stem}-{number}")


CASES = list(_cases())


@pytest.mark.parametrize("case", CASES)
def test_hostile_input_gets_one_line_and_loses_nothing(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in case.get("env", {}).items():
        monkeypatch.setenv(name, value)
    for name in case.get("unset", []):
        monkeypatch.delenv(name, raising=False)
    for name, text in case.get("files", {}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    for name, maker in case.get("make", {}).items():
        MAKERS[maker](tmp_path / name)
    before = {path: path.read_bytes() for path in _files(tmp_path)}
    arguments = shlex.split(case["run"]) if isinstance(case["run"], str) else case["run"]
    code, out, err = _in_a_process(arguments) if case.get("slow") or case.get("process") else _here(arguments)
    verdict = code not in _USER_MISTAKES or case.get("verdict", False)
    assert code == case["code"], (code, out, err)
    assert "Traceback" not in out + err
    if not verdict:
        assert err.count("\n") == 1, err
        assert err.startswith("sema-bench: ")
    assert re.search(case["says"], out + err if verdict else err), (out, err)
    for name in case.get("keeps", []):
        assert (tmp_path / name).read_bytes() == before[tmp_path / name], f"{name} was changed"
    for name in case.get("absent", []):
        assert not (tmp_path / name).exists(), f"{name} was made"
    written = [path for path in _files(tmp_path) if before.get(path) != path.read_bytes()]
    for path in written:
        _check_inert(path)
    contents = {"the output": out + err} | {
        str(path): path.read_text(errors="replace") for path in written if path.suffix not in BINARY
    }
    for place, content in contents.items():
        for text in case.get("never", []):
            assert text not in content, place
        for pattern in case.get("never_like", []):
            match = re.search(pattern, content, re.MULTILINE)
            assert match is None, (place, content[max(0, match.start() - 60) : match.end() + 60])
    for name in case.get("csv", []):
        table = out if name == "-" else (tmp_path / name).read_text(encoding="utf-8")
        cells = [cell for row in csv.reader(io.StringIO(table, newline="")) for cell in row]
        assert cells
        assert not [cell for cell in cells if FORMULA.match(cell)]


def test_the_corpus_is_large_and_names_no_case_twice() -> None:
    assert len(CASES) >= 170
    expected = ("says", "never", "never_like", "absent", "keeps", "code")
    runs = [str({key: value for key, value in case.values[0].items() if key not in expected}) for case in CASES]
    assert len(set(runs)) == len(runs)


def _check_inert(path: Path) -> None:
    """Check that a picture or a page has no scripts but the tool's own."""
    if path.suffix in (".svg", ".xml"):
        elements = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(path.read_bytes()).iter()}
        assert not elements & {"script", "foreignObject", "a"}, path
    if path.suffix == ".html":
        assert "<script>alert" not in path.read_text(encoding="utf-8"), path


def _here(arguments: list[str]) -> tuple[int, str, str]:
    with _time_limit(), _memory_limit():
        return invoke(*arguments)


def _in_a_process(arguments: list[str]) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "sema_bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def _time_limit() -> Iterator[None]:
    def too_long(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"no answer within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Let this process take at most LIMIT_BYTES more: reading a device to its end would take all memory."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    has = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (has + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

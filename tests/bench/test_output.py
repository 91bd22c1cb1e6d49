"""What commands print and write: nothing of it moves a terminal, commands a CI system or overwrites a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.text import Text
from test_comparison import invoke, record, write_run

from sema_bench.cli.gate import _suite_of_the_repository
from sema_bench.cli.output import check_output, put_out
from sema_bench.errors import UsageError
from sema_bench.suite import load_suite


def test_control_characters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    put_out(lambda console: console.print(Text("\x1b]0;title \x9b2J \x1b[31A")))
    assert capsys.readouterr().out == "\\x1b]0;title \\x9b2J \\x1b[31A\n"


@pytest.mark.parametrize("line", ["::error::x", "##[error]x", "##[command]x"])
def test_on_github_no_line_is_a_command(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    put_out(lambda console: console.print(Text(line)))
    first, middle, last = capsys.readouterr().out.splitlines()
    assert middle == line
    assert first.removeprefix("::stop-commands::") == last.strip(":")


@pytest.mark.parametrize("name", ["records.jsonl", "run.json"])
def test_no_output_goes_over_a_run(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a" / name)
    for path in (tmp_path / "a" / name, link):
        with pytest.raises(UsageError, match="is part of a run"):
            check_output(str(path))
        code, _, err = invoke("report", "a", "-o", str(path), "--out", str(tmp_path))
        assert (code, "is part of a run" in err) == (2, True)


def test_a_page_goes_to_stdout_alone(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    code, shown, _ = invoke("report", "a", "-o", "-", "--out", str(tmp_path))
    assert (code, shown.startswith("<!doctype html>"), shown.rstrip().endswith("</html>")) == (0, True, True)
    code, _, err = invoke("report", "a", "-o", "-", "--open", "--out", str(tmp_path))
    assert (code, "--open shows a file" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_baseline_that_cannot_be_read_is_named_and_hides_no_other(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    assert invoke("baseline", "save", "a", "kept", "--out", str(tmp_path))[0] == 0
    broken = tmp_path / "baselines" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    code, shown, err = invoke("baseline", "list", "--out", str(tmp_path))
    assert (code, shown.startswith("kept  1 cells"), err.startswith("left out: ")) == (0, True, True)


def test_a_run_may_be_called_like_a_file(tmp_path: Path) -> None:
    write_run(tmp_path, "v1.json", [record("m", 224, 0.2)])
    code, shown, err = invoke("export", "v1.json", "--columns", "model", "--out", str(tmp_path))
    assert (code, shown) == (0, "model\nm\n"), err


def test_a_column_is_asked_for_once(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    code, _, err = invoke("export", "a", "--columns", "model,model", "--format", "parquet", "--out", str(tmp_path))
    assert (code, "a column is asked for twice" in err) == (2, True)


def test_a_gate_in_a_subfolder_takes_the_suite_of_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(repository / "deep" / "down")
    assert _suite_of_the_repository() == "suites/gate.toml"
    (repository / "suites").mkdir()
    (repository / "suites" / "gate.toml").write_text("")
    assert Path(_suite_of_the_repository()).samefile(repository / "suites" / "gate.toml")


def test_a_bar_of_one_size_is_meant_whichever_way_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'claim = "c"\ncost = "1 s"\nmodels = ["sema_micro"]\nres = "64"\n[gate]\n'
        'deltas = { "sema_micro@64" = 0.1, "sema_micro@64x96" = 0.2, "sema_micro" = 0.3 }\n'
    )
    assert load_suite(str(path)).gate.deltas == {"sema_micro@64x64": 0.1, "sema_micro@64x96": 0.2, "sema_micro": 0.3}

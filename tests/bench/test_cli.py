"""Test the command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_support import invoke

from sema_bench import __version__
from sema_bench.cli import app
from sema_bench.cli.commands import COMMANDS
from sema_bench.spec.record import Record
from sema_bench.statistics import FEWEST_FOR_INTERVAL

COMMAND = [sys.executable, "-m", "sema_bench"]
SHORT = ("--time-limit", "0.2", "--precision", "0.2", "--threads", "1")
SMALL = ["scale", "--models", "sema_micro,sema_micro[linear]", "--res", "32,48", *SHORT]
FOUR_SIZES = ["scale", "--models", "sema_micro", "--res", "32..80:16", *SHORT, "--probes", "params"]
ONE_CELL = ["scale", "--models", "sema_micro", "--res", "32", *SHORT, "--probes", "params", "--run", "r"]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scale", "--models", "semma_tiny"], "did you mean 'sema_tiny'"),
        (["run", "quick", "--executor", "kubernetes"], "known: local, ray, slurm"),
        (["run", "quick", "--executor", "ray", "--jobs", "3"], "--jobs is for --executor slurm"),
        (["run", "quick", "--device", "cpu", "--devices", "0"], "--devices and device cpu contradict each other"),
        (["run", "quick", "--devices", "0,0"], "names a GPU twice"),
        (["run", "quick", "--executor", "slurm", "--slurm", "=x"], "takes an option of sbatch"),
        (["plan", "quick", "--executor", "slurm"], "Slurm decides what runs where"),
        (["plan", "quick", "--executor", "local", "--csv", "-"], "drop one"),
        (["run", "quick", "--out", "nosuch://x"], ": nosuch://x: Protocol"),
        (["run", "train_digits", "--executor", "ray"], "trains before it tests"),
        (["scale", "--models", "sema_tiny[linaer]"], "did you mean 'linear'"),
        (["scale", "--models", "deit_small[linear]"], "cannot be replaced"),
        (["scale", "--models", "sema_tiny["], "write NAME"),
        (["scale", "--models", "sema_tiny[sema,window_sise=3]", "--dry-run"], "no option 'window_sise'"),
        (["scale", "--models", "sema_tiny[lepe=no]", "--dry-run"], "takes bool; got 'no'"),
        (["scale", "--models", "sema_tiny[scale=nan]"], "takes float or None"),
        (["scale", "--models", "sema_tiny[window_size=7,window_size=9]"], "given twice"),
        (["scale", "--models", "mila_tiny[window_size=9]"], "'mila' has no option"),
        (["scale", "--models", "sema_tiny[\x1b[31m]"], "bad model name"),
        (["scale", "--models", "x" * 10_000], "bad model name"),
        (["scale", "--threads", "4000"], "may use"),
        (["scale", "--time-limit", "1e9"], "--time-limit"),
        (["run", "x" * 5000], "no suite|cannot be read"),
        (["scale", "--models", "sema_tiny[window_size=0]"], "window_size"),
        (["scale", "--models", "sema_tiny[window_sise=3]"], "no option 'window_sise'"),
        (["scale", "--models", ""], "--models"),
        (["scale", "--probes", "troughput"], "did you mean 'throughput'"),
        (["scale", "--device", "gpu"], "device"),
        (["scale", "--device", "cuda:99"], "--device cpu|cuda:0"),
        (["scale", "--dtype", "float23"], "did you mean 'float32'"),
        (["scale", "--layout", "nchw"], "channels_last"),
        (["scale", "--mode", "fast"], "compile"),
        (["scale", "--res", "1024..224"], "write 224..1024"),
        (["scale", "--res", "0"], "at least 32"),
        (["scale", "--res", "abc"], "use A..B"),
        (["scale", "--res", "31"], "at least 32"),
        (["scale", "--batch", "0"], "--batch"),
        (["scale", "--batch", "x"], "whole numbers"),
        (["scale", "--threads", "0"], "--threads"),
        (["scale", "--time-limit", "0"], "--time-limit"),
        (["scale", "--precision", "2"], "--precision"),
        (["scale", "--precision", "nan"], "--precision"),
        (["scale", "--time-limit", "inf"], "--time-limit"),
        (["scale", "--seed", "-1"], "--seed"),
        (["scale", "--run", "../x"], "bad run name"),
        (["scale", "--resume", "nothing"], "no run 'nothing'"),
        (["scale", "--resume", "x", "--res", "224"], "drop --res"),
        (["scale", "--retry-failed"], "--resume"),
        (["scale", "--dry-run", "--run", "x"], "drop one"),
        (["scale", "--bogus"], "--bogus"),
        (["run"], "name a suite"),
        (["run", "suites/nothing.toml"], "known: .*gpu, gpu_quick, memory, .*quick, scaling"),
        (["run", "suites/gpu.toml", "--device", "cpu"], "needs a CUDA device"),
        (["list", "everything"], "models"),
        (["nonsense"], "nonsense"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_on_stderr_and_exit_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(*arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("sema-bench: ")
    assert re.search(says, err)
    assert not (tmp_path / "results").exists(), "a mistake leaves nothing behind"


def test_version() -> None:
    assert invoke("--version") == (0, f"sema-bench {__version__}\n", "")


def test_every_option_of_scale_has_a_help_line() -> None:
    command = typer.main.get_command(app).commands["scale"].load()
    assert len(command.params) > 20
    assert all(parameter.help for parameter in command.params)


@pytest.mark.parametrize(
    ("kind", "some"),
    [("models", "sema_tiny"), ("attentions", "sema"), ("suites", "scaling"), ("probes", "throughput")],
)
def test_lists_name_and_explain(kind: str, some: str) -> None:
    code, out, _ = invoke("list", kind)
    assert code == 0
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines()]
    assert some in [row[0].rstrip(" *") for row in rows]
    assert all(len(row) == 2 and row[1] for row in rows), "each has a summary"


def test_env_is_readable_and_json() -> None:
    code, out, _ = invoke("env", "--json")
    assert code == 0
    body = json.loads(out)
    assert re.fullmatch(r"[0-9a-f]{12}", body["fingerprint"])
    assert body["software"]["torch"]
    assert invoke("env")[1].startswith(f"fingerprint  {body['fingerprint']}")


def test_a_dry_run_prints_the_cells_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke("scale", "--res", "224..1024", "--dry-run", "--device", "cpu")
    assert code == 0
    assert len(out.splitlines()) == 48
    assert "48 cells in 8 groups" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small real run, started as a user would start it."""
    folder = tmp_path_factory.mktemp("cli")
    return folder / "results" / "small", run(*SMALL, "--run", "small", cwd=folder)


def test_a_run_leaves_records_tables_and_plots(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"run.json", "records.jsonl", "table.csv", "scaling.csv", "crossovers.csv", "report.txt"} <= names
    assert {
        f"plots/{stem}.{kind}" for stem in ("latency", "throughput", "peak_memory", "macs") for kind in ("svg", "png")
    } <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_the_table_goes_to_stdout_plain_and_the_progress_to_stderr(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = finished
    assert "sema_micro[linear]" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "[4/4]" in done.stderr
    assert "[4/4]" not in done.stdout


def test_table_csv_has_one_row_per_cell_with_every_number(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = finished
    rows = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [(row["model"], row["height"]) for row in rows] == [
        ("sema_micro", "32"),
        ("sema_micro[linear]", "32"),
        ("sema_micro", "48"),
        ("sema_micro[linear]", "48"),
    ]
    for row in rows:
        assert row["status"] == "ok"
        assert float(row["latency_p10_s"]) <= float(row["latency_s"]) <= float(row["latency_p90_s"])
        few = int(row["latency_samples"]) < FEWEST_FOR_INTERVAL  # a busy machine takes few in so short a limit
        assert (row["latency_ci_low_s"] == "") == (row["latency_ci_high_s"] == "") == few
        if not few:
            assert float(row["latency_ci_low_s"]) <= float(row["latency_s"]) <= float(row["latency_ci_high_s"])
        assert int(row["flops"]) == 2 * int(row["macs"]) + int(row["scan_flops"])
        assert int(row["params"]) > 90_000
        assert int(row["peak_memory_bytes"]) > 4 * int(row["params"])


def test_records_say_how_they_came_about(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = finished
    metadata = json.loads((folder / "run.json").read_text())
    assert metadata["command"].startswith("sema-bench scale --models")
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = Record.from_json(line)
        assert record.environment == metadata["environment"]["fingerprint"]
        assert len(record.details["interleaved_with"]) == 1
        assert record.details["stop_reason"] in ("precision", "time limit")
        assert record.details["uncovered_operators"] == []
        assert record.measurements["latency_s"].samples


def test_resuming_a_finished_run_measures_nothing(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = finished
    before = (folder / "records.jsonl").read_bytes()
    again = run("scale", "--resume", "small", cwd=folder.parent.parent)
    assert again.returncode == 0, again.stderr
    assert (folder / "records.jsonl").read_bytes() == before
    assert again.stdout == done.stdout


def heed_signals() -> None:
    """Restore Ctrl-C: a shell's background processes ignore it, and so would our child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_stops_cleanly_and_resume_finishes(number: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [*COMMAND, *FOUR_SIZES, "--run", "stopped"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=heed_signals,
    ) as driver:  # fmt: skip
        assert driver.stderr is not None
        for line in driver.stderr:
            if line.startswith("[1/4]"):
                break
        driver.send_signal(number)
        rest = driver.stderr.read()
        assert driver.wait(timeout=20) == code, rest
    assert "--resume stopped" in rest
    assert "Traceback" not in rest
    resumed = run("scale", "--resume", "stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    records = [Record.from_json(line) for line in (tmp_path / "results/stopped/records.jsonl").read_text().splitlines()]
    assert len({record.cell.id for record in records}) == len(records) == 4


@pytest.mark.slow
def test_a_resumed_run_keeps_a_corrupt_record_aside(tmp_path: Path) -> None:
    done = run(*FOUR_SIZES, "--run", "torn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results/torn/records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2] + lines[3][:50])
    resumed = run("scale", "--resume", "torn", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "records.quarantine-1.jsonl" in resumed.stderr
    assert len(path.read_text().splitlines()) == 4
    assert b"garbage" in (tmp_path / "results/torn/records.quarantine-1.jsonl").read_bytes()


def test_a_run_survives_its_surroundings(tmp_path: Path) -> None:
    """An ASCII terminal, progress that cannot be written, and a file in the folder named like a module."""
    safe_path = []
    if sys.version_info >= (3, 11):  # older versions cannot leave the folder out
        (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
        safe_path = ["-P"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, *safe_path, "-m", "sema_bench", *ONE_CELL],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, text=True, timeout=240, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
    assert done.returncode == 0
    assert "sema_micro" in done.stdout
    assert len((tmp_path / "results/r/records.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_one_line_and_exit_4(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "list", "models"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1


def test_a_results_folder_that_cannot_be_written_is_exit_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("a file")
    code, _, err = invoke(*SMALL)
    assert code == 4
    assert err.count("\n") == 1
    assert "--out" in err


def test_help_names_every_command(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert [name for name in COMMANDS if " " not in name and f"\n  {name} " not in done.stdout] == []


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if entry.target])
def test_every_command_is_found_where_the_registry_says(name: str) -> None:
    code, out, err = invoke(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: root {name} [OPTIONS]")


@pytest.mark.parametrize("columns", [80, 120, 150])
def test_help_of_scale_has_panels_as_wide_as_the_terminal(columns: int, tmp_path: Path) -> None:
    done = run("scale", "--help", cwd=tmp_path, COLUMNS=str(columns))
    panels = ["What to measure", "How", "Precision and limits", "Results", "Where", "Options"]
    assert re.findall(r"^(\S.*):$", done.stdout, re.M) == panels
    assert columns - 20 < max(map(len, done.stdout.splitlines())) <= columns


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--base", "origin/main", "--budget-s", "9"], "run --base origin/main --budget-s 9"),
        (["--models", "a[b]", "--base", "x"], "run --models 'a[b]' --base x"),
        (["--delta", "0.1", "--baseline", "main", "--head-run", "r"], "stored main --delta 0.1 --head-run r"),
        (["--baseline=main"], "stored main"),
        (["--self-test", "5", "--loads", "busy"], "selftest --repeats 5 --loads busy"),
    ],
)
def test_gate_without_a_subcommand_answers_with_the_new_spelling(old: list[str], new: str) -> None:
    code, out, err = invoke("gate", *old)
    assert (code, out) == (2, "")
    assert err == f"sema-bench: gate has subcommands now; use: sema-bench gate {new}\n"


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("ga", {"gate"}),
        ("gate s", {"stored", "selftest"}),
        ("scale --ti", {"--time-limit"}),
        ("gate run --base-p", {"--base-python"}),
        ("run qu", {"quick"}),
        ("scale --models sema_tiny,sema_micro[li", {"sema_tiny,sema_micro[linear]"}),
        ("maps --models deit_small[li", set()),
    ],
)
def test_a_shell_completes_commands_and_their_options_without_torch(words: str, completions: set[str]) -> None:
    code = (
        "import sys\n"
        "from sema_bench.cli import main\n"
        "sys.argv = ['sema-bench']\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    request = {"COMP_WORDS": f"sema-bench {words}", "COMP_CWORD": str(len(words.split()))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_SEMA_BENCH_COMPLETE": "complete_bash", **request},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert set(done.stdout.split()) == completions, done.stderr
    assert not done.stderr

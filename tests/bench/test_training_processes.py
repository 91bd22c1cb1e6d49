"""Test trainings in their own processes: killed, several together, started by the command line or by a suite."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_support import invoke
from training_support import MODEL, start

from sema_bench.spec.plan import build_plan
from sema_bench.spec.suite import parse_suite
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.store.run_folder import RunFolder
from sema_bench.training.checkpoint import read_checkpoint
from sema_bench.training.metrics_log import read_metrics
from sema_bench.training.trainer import METRICS_LOG, STATE


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(folder / METRICS_LOG) if "loss" in entry]


OPTIONS = (
    *("--model", MODEL, "--data", "digits:field,images=32", "--res", "64", "--epochs", "2", "--batch", "8"),
    *("--set", "epoch_images=48", "--set", "warmup_epochs=0.5", "--set", "save_s=0.05"),
)


def test_a_killed_training_resumes_to_the_same_losses(tmp_path: Path) -> None:
    here = ("--out", str(tmp_path), "--threads", "1", "--device", "cpu")
    code, _, err = invoke("train", *OPTIONS, "--run", "whole", *here)
    assert code == 0, err
    killed = start(tmp_path, *OPTIONS, "--run", "killed")
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / WEIGHTS_FILE).exists()
    code, _, err = invoke("train", "--resume", "killed", *here)
    assert code == 0, err
    assert "of them done already" in err
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    assert (tmp_path / "killed" / "plots" / "training.svg").exists()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    both = start(tmp_path, *OPTIONS, "--name", "both", processes=2)
    _, err = both.communicate(timeout=180)
    assert both.returncode == 0, err
    changes = ("--set", "accumulate=2", "--run", "one")
    code, _, err = invoke("train", *OPTIONS, *changes, "--out", str(tmp_path), "--threads", "1", "--device", "cpu")
    assert code == 0, err
    # Gradients are summed in another order: rounding grows over twelve steps.
    assert losses_of(tmp_path / "both") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-3)
    one, two = (read_checkpoint(tmp_path / name / WEIGHTS_FILE)[0] for name in ("one", "both"))
    parameters = [key for key in one if "running" not in key and "num_batches" not in key]
    assert max(float((one[key] - two[key]).abs().max()) for key in parameters) < 1e-3


# From the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --model"),
        (("--model", MODEL), "give --data"),
        (("--model", "sema_mikro", "--data", "digits:cue"), "did you mean"),
        (("--model", MODEL, "--data", "digits:cue", "--set", "epochs"), "--set takes KEY=VALUE"),
        (("--model", MODEL, "--data", "digits:cue", "--set", "epoch=3"), "did you mean 'epochs'"),
        (("--model", MODEL, "--data", "digits:cue", "--res", "64,96"), "train takes one size"),
        (("--model", MODEL, "--data", "digits:cue", "--res", "32"), "scenes of digits need 64×64 pixels"),
        (("--model", MODEL, "--data", "digits:cue", "--device", "meta"), "nothing is trained on it"),
        (("--model", MODEL, "--data", "folder:x,train=digits:field"), "takes photographs to train on"),
        (("--model", MODEL, "--data", "digits:cue", "--set", "label_smoothing=" + "[" * 3000), "label_smoothing"),
        (("suites/quick.toml",), "has no [training]"),
        (("--resume", "gone"), "no run 'gone'"),
        (("--resume", "gone", "--epochs", "3"), "drop --epochs"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = invoke("train", *arguments, "--out", str(tmp_path))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_suite_for_cards_is_not_trained_on_a_cpu(tmp_path: Path) -> None:
    suite = tmp_path / "cards.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["sema_micro"]\ndata = ["digits:cue"]\nres = "64"\nprobes = ["accuracy"]\n'
        "requires_cuda = true\n[training]\nres = 64\n"
    )
    code, _, err = invoke("train", str(suite), "--device", "cpu", "--out", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "needs a CUDA device" in err
    code, _, err = invoke("train", str(suite), "--recipe", "deit", "--out", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "are two recipes; drop one" in err


def test_a_suite_trains_its_models_and_tests_them(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["sema_micro[linear,head=max]"]\n'
        'data = ["digits:zoom,images=40"]\nres = "64"\nprobes = ["params", "accuracy"]\n'
        "threads = [2]\n"
        "[training]\nres = 64\nepochs = 1\nepoch_images = 16\nbatch = 8\nwarmup_epochs = 0.5\nseeds = [0, 1]\n"
        '[training_for."digits:zoom"]\nbatch = 16\n'
    )
    code, shown, err = invoke("run", str(suite), "--out", str(tmp_path), "--run", "r")
    assert code == 0, err
    assert "mean of 2 seeds" in shown
    assert err.count("trained [") == err.count(": 1 steps in") == 2
    records = RunFolder.open(tmp_path, "r").records()
    assert len(records) == 2
    assert {record.value("evaluated_images") for record in records} == {40}
    code, again, err = invoke("run", "--resume", "r", "--out", str(tmp_path))
    assert (code, again) == (0, shown)
    assert "trained [" not in err


def test_data_has_the_recipe_that_is_written_for_it() -> None:
    table = {"name": "n", "claim": "c", "cost": "c", "models": ["sema_micro"], "res": "64", "probes": ["accuracy"]}
    table |= {"data": ["digits:field", "digits:zoom,images=40"], "training": {"res": 64, "batch": 8}}
    suite = parse_suite({**table, "training_for": {"digits:zoom": {"batch": 16}}}, source="test")
    recipes = build_plan(suite, device="cpu", threads=1).recipes
    assert {data: recipe.batch for data, recipe in recipes.items()} == {"digits:field": 8, "digits:zoom,images=40": 16}
    assert {recipe.lr for recipe in recipes.values()} == {1e-3}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('"digits:zoom"', "training_for has 'digits:zoom', but no model is trained on it"),
        ('"digits:field"]\n[training_for."digits:field,images=40"', "'digits:field' occurs twice"),
        ('"digits:field"', "training_for: unknown key of a recipe 'epoch'"),
        ('"nothing:here"', "key 'training_for': unknown kind of data 'nothing'"),
    ],
)
def test_a_recipe_for_other_data_is_refused(tmp_path: Path, table: str, message: str) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["deit_small"]\ndata = ["digits:field"]\nres = "64"\nprobes = ["accuracy"]\n'
        f"[training]\nres = 64\n[training_for.{table}]\nepoch = 1\n"
    )
    code, _, err = invoke("run", str(suite), "--out", str(tmp_path))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_training_that_fails_is_the_error_of_its_cells(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        'claim = "c"\ncost = "c"\nmodels = ["sema_micro[linear]"]\ndata = ["digits:field,images=40"]\nres = "64"\n'
        'probes = ["accuracy"]\nthreads = [1]\n'
        "[training]\nres = 64\nepochs = 1\nepoch_images = 16\nbatch = 8\nwarmup_epochs = 0.5\nflip = 0.5\n"
    )
    code, shown, err = invoke("run", str(suite), "--out", str(tmp_path), "--run", "r")
    assert code == 1
    assert "failed: flip is for photographs" in err
    assert "its training failed: flip is for photographs" in " ".join(shown.split())


SUITE = (
    'claim = "c"\ncost = "c"\nmodels = ["sema_micro[linear]"]\ndata = ["digits:field,images=40"]\nres = "64"\n'
    'probes = ["accuracy"]\nthreads = [1]\n'
    "[training]\nres = 64\nepochs = 1\nepoch_images = 16\nbatch = 8\nwarmup_epochs = 0.5\n"
)


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        ("print(json.dumps({'failed': 'its own reason'}))", "its own reason"),
        ("", "the training ended with code 1: epoch 1: 50 %"),
    ],
)
def test_what_a_training_writes_to_stderr_neither_hides_its_reason_nor_becomes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdout: str, reason: str
) -> None:
    script = (
        "import json, sys\n"
        "sys.stderr.write(json.dumps({'failed': 'a line of a library'}) + '\\nepoch 1: 50 %')\n"
        f"sys.stderr.flush()\n{stdout}\nsys.exit(1)"
    )

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        training = "sema_bench.training.process" in command
        return real([sys.executable, "-c", script] if training else command, **options)

    real = subprocess.Popen
    monkeypatch.setattr("sema_bench.training.train_suite.subprocess.Popen", popen)
    (tmp_path / "tiny.toml").write_text(SUITE)
    code, _, err = invoke("run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path), "--run", "r")
    assert code == 1
    assert f"failed: {reason};" in err


@pytest.mark.parametrize(("times", "code"), [pytest.param(1, 0, marks=pytest.mark.faults), (2, 1)])
def test_a_training_that_is_killed_goes_on_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, code: int
) -> None:
    left = [times]

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        process = real(command, **options)
        if left[0] and "sema_bench.training.process" in command:
            left[0] -= 1
            process.kill()
        return process

    real = subprocess.Popen
    monkeypatch.setattr("sema_bench.training.train_suite.subprocess.Popen", popen)
    (tmp_path / "tiny.toml").write_text(SUITE)
    found, _, err = invoke("run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path), "--run", "r")
    assert found == code, err
    assert "was killed by signal 9; it resumes later" in err
    assert ("failed: the training was killed by signal 9" in err) == (times == 2)


@pytest.mark.faults
def test_a_full_disk_ends_the_run_and_not_the_cells(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    code, _, err = invoke("run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path), "--run", "r")
    assert code == 0
    (folder,) = (tmp_path / "r" / "trained").iterdir()
    (tmp_path / "r" / "records.jsonl").unlink()
    for file in folder.iterdir():
        file.unlink()
    (folder / METRICS_LOG).mkdir()  # a folder, so the log cannot be written
    code, _, err = invoke("run", "--resume", "r", "--out", str(tmp_path))
    assert code == 4
    assert "fix that and resume the run" in err.splitlines()[-1]
    (folder / METRICS_LOG).rmdir()
    code, _, err = invoke("run", "--resume", "r", "--out", str(tmp_path))
    assert code == 0, err


@pytest.mark.parametrize(
    ("body", "train", "run"),
    [
        ({}, "is not a training", "has no cells to resume"),
        ({"training": {"recipe": 5}}, "run.json: must be a table; got 5", "is a training"),
        ({"training": {"recipe": {}, "model": 5, "data": 3, "seed": 0}}, "holds no training", "is a training"),
        ({"suite": {}, "plan": {}}, "sema-bench run --resume r", "holds no plan"),
    ],
)
def test_a_damaged_run_is_told_in_one_line(tmp_path: Path, body: object, train: str, run: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_text(json.dumps(body))
    for command, message in (("train", train), ("run", run)):
        code, _, err = invoke(command, "--resume", "r", "--out", str(tmp_path))
        assert code in (2, 4)
        assert message in err
        assert err.count("\n") == 1

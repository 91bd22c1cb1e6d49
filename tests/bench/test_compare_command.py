"""Test ``sema-bench compare``: what it prints, writes, refuses and reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from command_support import invoke
from comparison_support import failed, record, write_run


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    nasty = "=1|[b]<i>::error::%"
    write_run(tmp_path, "a", [record(nasty, 224, 0.2), record("m", 224, 0.2), failed("n", 224)])
    write_run(tmp_path, "b", [record(nasty, 224, 0.1), failed("m", 224), record("n", 224, 0.2)])
    files = [str(tmp_path / f"c.{kind}") for kind in ("csv", "md", "tex")]
    options = (f"--{name}={file}" for name, file in zip(("csv", "markdown", "latex"), files, strict=True))
    code, shown, err = invoke("compare", "a", "b", "b", "--out", str(tmp_path), *options)
    assert (code, err) == (0, "")
    for word in (nasty, "2.000", "faster", "it [bold]died[/]", "geometric mean", "broken (1)", "mended (1)"):
        assert word in " ".join(shown.split()), word
    frame = pd.read_csv(files[0])
    assert len(frame) == 8
    assert (frame["verdict"] == "geometric mean of 1").sum() == 2
    assert list(frame["verdict"][:4]) == ["faster", "geometric mean of 1", "broken", "mended"]
    assert frame["model"][0] == f"'{nasty}"
    assert "\\|" in Path(files[1]).read_text()
    assert "<i>" not in Path(files[1]).read_text()
    assert "\\%" in Path(files[2]).read_text()
    code, shown, _ = invoke("compare", "a", "b", "--out", str(tmp_path), "--csv", "-")
    assert code == 0
    assert shown.startswith("base,other,metric,model,")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("a",), 2, "compare takes two runs or more; got 1"),
        (("a", "gone"), 2, "no run 'gone'"),
        (("a", "b", "--metric", "latancy_s"), 2, "did you mean 'latency_s'"),
        (("a", "b", "--allow", "dtpye"), 2, "did you mean 'dtype'"),
        (("a", "b", "--allow", "model"), 2, "unknown field of the identity 'model'"),
        (("a", "far"), 2, "differ in hardware"),
        (("a", "empty"), 2, "run 'empty' holds no cells: 'an unknown command' wrote its figures to"),
        (("a", "other"), 2, "no cell of a can be compared: m: dtype float32 | bfloat16"),
        (("a", "../../etc"), 2, "no run '../../etc'"),
        (("a", "newer"), 4, "schema version 99 is not readable"),
        (("a", "b", "--csv", "-", "--latex", "-"), 2, "only one can go to stdout"),
        (("a", "nothing.json"), 2, "no file 'nothing.json'"),
    ],
)
def test_a_wrong_request_gets_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2)])
    write_run(tmp_path, "b", [record("m", 224, 0.2)])
    write_run(tmp_path, "far", [record("m", 224, 0.2)], hardware={"cpu": "y"})
    write_run(tmp_path, "empty", [])
    write_run(tmp_path, "other", [record("m", 224, 0.2, dtype="bfloat16")])
    write_run(tmp_path, "newer", [record("m", 224, 0.2)])
    (tmp_path / "newer" / "records.jsonl").write_text('{"schema_version": 99}\n')
    got, _, err = invoke("compare", *arguments, "--out", str(tmp_path))
    assert (got, message in err, err.count("\n")) == (code, True, 1), err


def test_one_corrupt_line_costs_one_row(tmp_path: Path) -> None:
    write_run(tmp_path, "a", [record("m", 224, 0.2), record("n", 224, 0.2)])
    write_run(tmp_path, "b", [record("m", 224, 0.2), record("n", 224, 0.2)])
    lines = (tmp_path / "b" / "records.jsonl").read_text().splitlines()
    (tmp_path / "b" / "records.jsonl").write_text(lines[0][:40] + "\n" + lines[1] + "\n")
    code, shown, err = invoke("compare", "a", "b", "--out", str(tmp_path))
    assert code == 0
    assert err == "1 line of b is not a record and is left out\n"
    assert "only in a (1)" in shown


def test_a_file_of_pytest_benchmark_is_a_run(tmp_path: Path) -> None:
    ours = dataclasses.replace(record("m", 224, 0.2))
    benchmarks = [
        {"fullname": "b.py::one", "stats": {"median": 0.5, "data": [0.4, 0.5, 0.6] * 5}},
        {"fullname": "b.py::two", "stats": {"median": 0.5}},
        {
            "fullname": "b.py::ours",
            "stats": {"median": 9},
            "extra_info": {"sema_bench_record": json.loads(ours.to_json())},
        },
    ]
    body = {"machine_info": {"cpu": {"brand_raw": "x"}}, "benchmarks": benchmarks, "version": "5.1"}
    (tmp_path / "b.json").write_text(json.dumps(body))
    path = str(tmp_path / "b.json")
    code, shown, err = invoke("compare", path, path, "--metric", "latency_s", "--out", str(tmp_path))
    assert code == 0, err
    assert "b.py::one" in shown
    assert "m 224" in shown
    for text in ("{}", "[", '{"machine_info": {}, "benchmarks": [{}]}'):
        (tmp_path / "b.json").write_text(text)
        code, _, err = invoke("compare", path, path)
        assert (code, "is not a pytest-benchmark file" in err) == (4, True)

"""Comparing runs: which rows are compared, what the ratio and its interval are, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sema_bench.analysis.comparison import compare, interval_of_ratio
from sema_bench.cli import app
from sema_bench.errors import UsageError
from sema_bench.loaded_run import LoadedRun
from sema_bench.metrics import METRICS
from sema_bench.plan import Plan, Sampling
from sema_bench.schema import Cell, Measurement, Record
from sema_bench.store import RunFolder

MACHINE = {"hardware": {"cpu": "x", "cpus": 2}, "software": {"torch": "2.13.0"}}


def record(model: str, side: int, latency: float, *, yardstick: float | None = None, **changes: object) -> Record:
    cell = Cell(model=model, height=side, width=side, **changes)  # type: ignore[arg-type]
    spread = {"ci_low": latency * 0.98, "ci_high": latency * 1.02}
    found = [
        Measurement(metric="latency_s", value=latency, **spread),
        Measurement(
            metric="throughput_images_per_s",
            value=cell.batch / latency,
            ci_low=cell.batch / spread["ci_high"],
            ci_high=cell.batch / spread["ci_low"],
        ),
        Measurement(metric="macs", value=1e9),
    ]
    if yardstick:
        relative = {key: value / yardstick for key, value in spread.items()}
        found.append(Measurement(metric="relative_latency", value=latency / yardstick, **relative))
        found.append(Measurement(metric="yardstick_s", value=yardstick))
    return Record(cell=cell, status="ok", measurements={m.metric: m for m in found})


def failed(model: str, side: int) -> Record:
    return Record(cell=Cell(model=model, height=side, width=side), status="crashed", reason="it [bold]died[/]")


def loaded(
    name: str, records: Sequence[Record], *, plan: dict[str, object] | None = None, **machine: object
) -> LoadedRun:
    plan = plan or Plan("s", ((records[0].cell,),), ("params",), Sampling()).to_json()
    body = {**MACHINE, **machine}
    return LoadedRun(name, tuple(records), body["hardware"], body["software"], {"plan": plan})


def speed(base: Sequence[Record], other: Sequence[Record], **options: object):
    return compare(loaded("a", base), loaded("b", other), metric="throughput_images_per_s", **options)


def test_the_interval_of_a_ratio_covers_the_true_ratio() -> None:
    """95 of 100 intervals of medians of noisy samples hold it, whatever the ratio."""
    from sema_bench.analysis.bootstrap import median_interval

    generator = np.random.default_rng(0)
    hits, trials = 0, 400
    for seed in range(trials):
        sides = []
        for scale in (1.3, 1.0):
            samples = scale * np.exp(generator.normal(0, 0.2, 40))
            value, low, high = median_interval(samples, seed=seed)
            sides.append(Measurement(metric="latency_s", value=value, ci_low=low, ci_high=high))
        low, high = interval_of_ratio(*sides)
        assert low is not None
        assert high is not None
        hits += low < 1.3 < high
    assert 0.92 < hits / trials < 0.99


def test_ratios_are_above_one_where_the_other_run_is_better() -> None:
    base, other = [record("m", 224, 0.2)], [record("m", 224, 0.1)]
    for metric in ("throughput_images_per_s", "latency_s"):
        (ratio,) = compare(loaded("a", base), loaded("b", other), metric=metric).ratios
        assert ratio.value == pytest.approx(2.0)
        assert ratio.ci_low < 2 < ratio.ci_high
        assert ratio.verdict(base[0].measurements[metric].definition, 0.03) == "faster"
    (back,) = speed(other, base).ratios
    assert (back.value, back.verdict(base[0].measurements["latency_s"].definition, 0.03)) == (0.5, "slower")


def test_a_wide_interval_is_unclear_and_a_narrow_one_the_same() -> None:
    (ratio,) = speed([record("m", 224, 0.1)], [record("m", 224, 0.101)]).ratios
    metric = ratio.base.measurements["throughput_images_per_s"].definition
    assert ratio.verdict(metric, 0.03) == "unclear"
    assert ratio.verdict(metric, 0.05) == "same"
    (equal,) = compare(loaded("a", [ratio.base]), loaded("b", [ratio.other]), metric="macs").ratios
    assert equal.verdict(ratio.base.measurements["macs"].definition, 0.03) == "same"


def test_a_machine_that_changed_its_speed_falls_out() -> None:
    base = [record("m", 224, 0.2, yardstick=0.01)]
    other = [record("m", 224, 0.3, yardstick=0.015)]
    (ratio,) = speed(base, other).ratios
    assert ratio.value == pytest.approx(1.0)
    assert ratio.drift == pytest.approx(1 / 1.5)
    (plain,) = speed(base, other, raw=True).ratios
    assert (plain.value, plain.drift) == (pytest.approx(1 / 1.5), None)


@pytest.mark.parametrize(
    ("latency", "yardstick", "verdict"),
    [
        (0.13, 0.005, "unclear"),  # the machine became twice as fast, and the cell 1.5 times
        (0.13, 0.010, "faster"),
        (0.30, 0.011, "slower"),
        (0.30, 0.015, "same"),
        (0.30, 0.010, "slower"),
        (0.21, 0.015, "unclear"),  # it kept its time on a slower machine
    ],
)
def test_what_is_faster_or_slower_is_so_in_seconds_too(latency: float, yardstick: float, verdict: str) -> None:
    base, other = [record("m", 224, 0.2, yardstick=0.01)], [record("m", 224, latency, yardstick=yardstick)]
    (ratio,) = speed(base, other).ratios
    assert ratio.verdict(METRICS["throughput_images_per_s"], 0.03) == verdict


def test_a_yardstick_of_another_cell_or_of_the_code_that_changed_is_left_alone() -> None:
    records = [record("m", 224, 0.2, yardstick=0.01)], [record("m", 224, 0.3, yardstick=0.015)]
    base, other = loaded("a", records[0]), loaded("b", [dataclasses.replace(records[1][0])])
    (ratio,) = compare(base, other, metric="latency_s").ratios
    assert ratio.drift == pytest.approx(1 / 1.5)
    on_two_threads = Plan("s", ((dataclasses.replace(records[0][0].cell, threads=2),),), ("params",), Sampling())
    (ratio,) = compare(base, loaded("b", records[1], plan=on_two_threads.to_json()), metric="latency_s").ratios
    assert ratio.drift is None
    first_cell = {key: value for key, value in base.metadata["plan"].items() if key != "yardstick"}
    sides = [loaded(name, rows, plan=first_cell) for name, rows in zip("ab", records, strict=True)]
    (ratio,) = compare(*sides, metric="latency_s").ratios
    assert ratio.drift is None
    for side in sides:
        side.metadata["environment"] = {"context": {"code": "1"}}
    (ratio,) = compare(*sides, metric="latency_s").ratios
    assert ratio.drift is not None


@pytest.mark.parametrize(
    ("base", "other", "metric", "message"),
    [
        ({}, {"drop": "latency_s"}, "latency_s", "other: no latency_s"),
        ({"fail": True}, {"fail": True}, "latency_s", "base: crashed, it [bold]died[/]"),
        ({"batch": 64, "batch_policy": "max"}, {"batch": 128, "batch_policy": "max"}, "latency_s", "batch 64 | 128"),
    ],
)
def test_what_has_no_ratio_is_listed_with_the_reason(
    base: dict[str, object], other: dict[str, object], metric: str, message: str
) -> None:
    def made(options: dict[str, object]) -> Record:
        options = dict(options)
        if options.pop("fail", False):
            return failed("m", 224)
        dropped = options.pop("drop", None)
        found = record("m", 224, 0.2, **options)
        return dataclasses.replace(found, measurements={k: v for k, v in found.measurements.items() if k != dropped})

    found = compare(loaded("a", [made(base)]), loaded("b", [made(other)]), metric=metric)
    ((cell, why),) = found.unmeasured
    assert (cell.model, found.ratios, found.broken) == ("m", (), ())
    assert why.startswith(message)


def test_a_model_of_a_file_that_was_edited_is_compared() -> None:
    base, other = [record("net.py:build@11111111", 224, 0.2)], [record("net.py:build@22222222", 224, 0.1)]
    assert [r.value for r in speed(base, other).ratios] == [pytest.approx(2.0)]


def test_a_cell_that_is_there_twice_is_told() -> None:
    with pytest.raises(UsageError, match="a has m at 224x224 twice"):
        speed([record("m", 224, 0.2)] * 2, [record("m", 224, 0.2)])


def test_runs_that_do_not_say_where_they_ran_do_not_compare() -> None:
    base, other = loaded("a", [record("m", 224, 0.2)], hardware={}), loaded("b", [record("m", 224, 0.2)])
    with pytest.raises(UsageError, match="a does not say its hardware"):
        compare(base, other, metric="latency_s")
    assert compare(base, other, metric="latency_s", allow=["hardware"]).ratios


@pytest.mark.parametrize(
    ("metric", "one", "two", "verdict"),
    [
        ("peak_memory_bytes", 2e9, 1e9, "better"),
        ("peak_memory_bytes", 2e9, 2e9, "same"),
        ("peak_memory_bytes", 1e9, 2e9, "worse"),
        ("compile_s", 10.0, 10.5, "unclear"),
    ],
)
def test_a_single_value_says_something_where_it_is_always_the_same(
    metric: str, one: float, two: float, verdict: str
) -> None:
    sides = []
    for value in (one, two):
        found = record("m", 224, 0.2)
        measured = Measurement(metric=metric, value=value)
        sides.append(dataclasses.replace(found, measurements={**found.measurements, metric: measured}))
    (ratio,) = compare(loaded("a", sides[:1]), loaded("b", sides[1:]), metric=metric).ratios
    assert ratio.verdict(sides[0].measurements[metric].definition, 0.03) == verdict


def test_rows_of_another_identity_are_refused_by_field() -> None:
    base = [record("m", 224, 0.2), record("m", 448, 0.8)]
    other = [record("m", 224, 0.1, dtype="bfloat16", threads=2), record("m", 448, 0.8), record("new", 224, 0.1)]
    found = speed(base, other)
    assert [r.base.cell.height for r in found.ratios] == [448]
    assert [r.text for r in found.refused] == ["dtype float32 | bfloat16, threads 1 | 2"]
    assert ([c.model for c in found.new], found.vanished) == (["new"], ())
    allowed = speed(base, other, allow=["dtype", "threads"])
    assert [r.value for r in allowed.ratios] == [pytest.approx(2.0), pytest.approx(1.0)]
    assert allowed.refused == ()
    with pytest.raises(UsageError, match="a has several rows of m at 224x224, of different dtype"):
        speed([record("m", 224, 0.2), record("m", 224, 0.2, dtype="bfloat16")], other, allow=["dtype"])


def test_times_of_different_machines_do_not_compare() -> None:
    base, other = loaded("a", [record("m", 224, 0.2)]), loaded("b", [record("m", 224, 0.2)], hardware={"cpu": "y"})
    with pytest.raises(UsageError, match=r"a and b differ in hardware \(cpu x \| y, cpus 2 \| None\)"):
        compare(base, other, metric="latency_s")
    assert compare(base, other, metric="latency_s", allow=["hardware"]).ratios
    assert compare(base, other, metric="macs").ratios


def test_what_broke_and_what_is_mended_is_told() -> None:
    found = speed([record("m", 224, 0.2), failed("n", 224)], [failed("m", 224), record("n", 224, 0.2)])
    assert [pair[1].status for pair in found.broken] == ["crashed"]
    assert [pair[0].cell.model for pair in found.mended] == ["n"]


def test_the_mean_of_a_model_is_geometric_with_its_interval() -> None:
    base = [record("m", side, 0.2) for side in (224, 448, 896)]
    other = [record("m", side, 0.2 / ratio) for side, ratio in ((224, 0.5), (448, 1.0), (896, 4.0))]
    (mean,) = speed(base, other).means()
    assert (mean.model, mean.cells) == ("m", 3)
    assert mean.value == pytest.approx(2 ** (1 / 3))
    logs = np.log([0.5, 1.0, 4.0])
    assert math.log(mean.ci_high / mean.value) == pytest.approx(4.303 * logs.std(ddof=1) / math.sqrt(3), rel=1e-3)
    alike = [record("m", side, 0.1) for side in (224, 448, 896)]
    (mean,) = speed(base, alike).means()
    one = math.hypot(math.log(1 / 0.98), math.log(1.02))
    assert math.log(mean.ci_high / mean.value) == pytest.approx(one / math.sqrt(3), rel=1e-2)
    mixed = [record("m", 224, 0.2), record("m", 224, 0.2, dtype="bfloat16")]
    assert [mean.cells for mean in speed(mixed, mixed).means()] == [1, 1]


# The command


def write_run(root: Path, name: str, records: Sequence[Record], **machine: object) -> None:
    plan = Plan("s", ((records[0].cell,),), ("params",), Sampling()) if records else None
    metadata = {"environment": {**MACHINE, **machine}, "plan": plan.to_json() if plan else {}}
    run = RunFolder.create(root, "s", name, metadata=metadata)
    with run.lock():
        for each in records:
            run.append(each)


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


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
        (("a", "empty"), 2, "run 'empty' holds no cells: it is of 'an unknown command'"),
        (("a", "other"), 2, "no cell of a can be compared: m: dtype float32 | bfloat16"),
        (("a", "../../etc"), 2, "no run '../../etc'"),
        (("a", "newer"), 4, "schema version 99 is not readable"),
        (("a", "b", "--csv", "-", "--latex", "-"), 2, "only one of"),
        (("a", "nothing.json"), 2, "no file 'nothing.json'"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
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
    assert err == "1 line of b is no record and is left out\n"
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
        assert (code, "is not a file of pytest-benchmark" in err) == (4, True)

"""Test suites and plans: reading, checking and crossing, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sema_bench.errors import StoreError, SuiteError, UsageError
from sema_bench.spec.cell import MODES
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.suite import Suite, list_suites, load_suite, override, parse_suite
from sema_bench.spec.target import Card

BASE = {"name": "s", "claim": "c", "cost": "none", "models": ["sema_tiny", "mila_tiny"], "res": "224,512"}


def suite(**changes: Any) -> Suite:
    return parse_suite({**BASE, **changes}, source="s.toml")


def test_a_plan_survives_the_way_to_json_and_back() -> None:
    plan = build_plan(suite(batch=[1, 4], dtype=["float32", "bfloat16"]), device="cpu", threads=2)
    import json

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_groups_hold_cells_that_differ_in_the_model_alone_smallest_first() -> None:
    plan = build_plan(suite(), device="cpu", threads=2)
    assert [[cell.model for cell in group] for group in plan.groups] == [["sema_tiny", "mila_tiny"]] * 2
    assert [group[0].height for group in plan.groups] == [224, 512]
    for group in plan.groups:
        assert len({cell.id.partition("@")[2] for cell in group}) == 1


def test_axes_are_crossed() -> None:
    plan = build_plan(
        suite(batch=[1, 8], mode=["eager", "compile"], layout=["channels_last", "contiguous"]), device="cpu", threads=1
    )
    assert len(plan.cells) == 2 * 2 * 2 * 2 * 2
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)


def test_tf32_is_an_axis_of_float32_on_cuda_alone() -> None:
    both = suite(dtype=["float32", "bfloat16"], tf32=[False, True])
    on_gpu = build_plan(both, device="cuda:0", threads=1)
    assert {(cell.dtype, cell.tf32) for cell in on_gpu.cells} == {
        ("float32", False),
        ("float32", True),
        ("bfloat16", False),
    }
    assert len(on_gpu.cells) == 3 * 2 * 2
    assert not any(cell.tf32 for cell in build_plan(both, device="cpu", threads=1).cells)
    with pytest.raises(UsageError, match="only CUDA"):
        build_plan(suite(tf32=[True]), device="cpu", threads=1)
    with pytest.raises(UsageError, match="drop one"):
        build_plan(suite(tf32=[True], dtype=["bfloat16"]), device="cuda:0", threads=1)


def test_the_allocator_is_an_axis_of_the_cpu_alone() -> None:
    assert {cell.allocator for cell in build_plan(suite(), device="cpu", threads=1).cells} == {"retain"}
    assert {cell.allocator for cell in build_plan(suite(), device="cuda:0", threads=1).cells} == {"default"}
    with pytest.raises(UsageError, match="C allocator"):
        build_plan(suite(allocator=["retain"]), device="cuda:0", threads=1)


@pytest.mark.parametrize(
    "damage",
    [
        {"groups": [[{"model": "nothing", "height": 224, "width": 224}]]},
        {"groups": [[{"model": "sema_tiny", "height": 1, "width": 224}]]},
        {"groups": [[{"model": "sema_tiny", "height": "x", "width": 224}]]},
        {"groups": [[{"model": "sema_tiny", "height": 224, "width": 224, "allocator": "zzz"}]]},
        {"groups": [[{"model": "sema_tiny", "height": 224, "width": 224, "device": "tpu"}]]},
        {"groups": [[{"model": "sema_tiny", "height": 224, "width": 224, "batch": 0}]]},
        {"groups": 5},
        {"probes": ["zzz"]},
        {"sampling": {"seed": [1]}},
        {"sampling": None},
    ],
)
def test_a_plan_that_this_release_could_not_have_made_is_refused(damage: dict[str, Any]) -> None:
    body = build_plan(suite(), device="cpu", threads=1).to_json()
    with pytest.raises(StoreError, match="no plan"):
        Plan.from_json({**body, **damage})


def test_a_suite_that_needs_cuda_refuses_a_cpu() -> None:
    with pytest.raises(UsageError, match="needs a CUDA device"):
        build_plan(load_suite("gpu"), device="cpu", threads=1)


def test_two_spellings_of_one_model_are_one_cell() -> None:
    plan = build_plan(suite(models=["sema_tiny[linear]", "sema_tiny[ linear ]"]), device="cpu", threads=1)
    assert {cell.model for cell in plan.cells} == {"sema_tiny[linear]"}
    assert len(plan.cells) == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"modles": ["x"]}, r"s\.toml: unknown key 'modles'; did you mean 'models'"),
        ({"models": ["semma_tiny"]}, "key 'models', entry 1: .*did you mean 'sema_tiny'"),
        ({"models": ["sema_tiny[linaer]"]}, "did you mean 'linear'"),
        ({"models": ["deit_small[linear]"]}, "cannot be replaced"),
        ({"models": []}, "models"),
        ({"models": "sema_tiny"}, "models': must be a list; got 'sema_tiny'"),
        ({"probes": ["throughputt"]}, "did you mean 'throughput'"),
        ({"res": "1024..224"}, "runs backwards"),
        ({"res": 224}, "must be text in quotes"),
        ({"batch": [0]}, "key 'batch', entry 1: must be at least 1; got 0"),
        ({"batch": [True]}, "must be a whole number"),
        ({"batch": [1, 1]}, "occurs twice"),
        ({"dtype": ["float8"]}, "key 'dtype', entry 1: must be 'float32'.*got 'float8'"),
        ({"time_limit_s": -1.0}, "must be more than 0"),
        ({"time_limit_s": "5"}, "must be a number"),
        ({"precision": 1.5}, "must be less than 1"),
        ({"device": "tpu"}, "device"),
        ({"name": "../x"}, "name"),
        ({"threads": 0}, "threads"),
    ],
)
def test_a_bad_suite_is_refused_by_file_key_and_expectation(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SuiteError, match=says) as caught:
        suite(**changes)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SuiteError, match="key 'models' is missing"):
        parse_suite({key: value for key, value in BASE.items() if key != "models"}, source="s.toml")


def test_a_suite_of_ones_own_need_not_say_what_it_is_for() -> None:
    suite = parse_suite({key: value for key, value in BASE.items() if key not in ("claim", "cost")}, source="s.toml")
    assert (suite.claim, suite.cost) == ("", "")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("models = [")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    for name in ("a.toml", "b.toml"):
        with pytest.raises(SuiteError, match=f"{name}: not valid TOML"):
            load_suite(str(tmp_path / name))
    with pytest.raises(SuiteError, match=r"^no suite and no file 'scalign'; did you mean 'scaling'\?$"):
        load_suite("scalign")
    with pytest.raises(SuiteError, match=r"known: .*gpu, gpu_quick, memory, .*quick, scaling"):
        load_suite("zzz")
    with pytest.raises(SuiteError, match=r"; did you mean '.*a\.toml'\?$"):
        load_suite(str(tmp_path / "aa.toml"))


@pytest.mark.parametrize("name", list_suites())
def test_every_suite_of_the_project_says_its_claim_and_cost_and_plans(name: str) -> None:
    loaded = load_suite(f"suites/{name}.toml")
    opening = list_suites()[name].read_text().splitlines()[0]
    assert opening.startswith("# Claim:")
    assert loaded.claim
    assert loaded.cost
    device = "cuda:0" if loaded.requires_cuda else "cpu"
    assert build_plan(loaded, device=device, threads=2).cells


def test_the_scaling_suite_is_the_48_cells_that_the_readme_shows() -> None:
    assert len(build_plan(load_suite("scaling"), device="cpu", threads=2).cells) == 48


@pytest.mark.parametrize(("name", "count"), [("gpu", 11 * 5 * 2 * 2 * 2), ("gpu_quick", 5 * 4 * 2)])
def test_the_gpu_suites_compare_where_launches_do_not_decide(name: str, count: int) -> None:
    loaded = load_suite(name)
    cells = build_plan(loaded, device="cuda:0", threads=2).cells
    assert len(cells) == count
    assert loaded.cost.startswith(f"{count} cells")
    assert "eager" not in {cell.mode for cell in cells}
    scans = {cell.model for cell in cells if cell.model.startswith(("vmamba", "vim"))}
    assert all("[scan=" in model for model in scans), "a form that nobody chose"
    for model in scans:
        assert name == "gpu_quick" or model.replace("=triton", "=torch") in scans


def test_an_override_is_checked_like_the_suite() -> None:
    assert override(suite(), {"batch": [4]}).batch == [4]
    with pytest.raises(UsageError, match="--time-limit"):
        override(suite(), {"time_limit_s": -1.0})


def test_cudnn_benchmark_is_an_axis_of_cuda_alone() -> None:
    both = suite(cudnn_benchmark=[False, True])
    assert {cell.cudnn_benchmark for cell in build_plan(both, device="cuda:0", threads=1).cells} == {False, True}
    assert not any(cell.cudnn_benchmark for cell in build_plan(both, device="cpu", threads=1).cells)


def test_axes_that_need_training_or_inference_appear_once_beside_it() -> None:
    plan = build_plan(suite(step=["infer", "train"], checkpointing=[False, True]), device="cpu", threads=1)
    assert {(cell.step, cell.checkpointing) for cell in plan.cells} == {
        ("infer", False),
        ("train", False),
        ("train", True),
    }
    assert len(plan.cells) == len(set(plan.cells)) == len({cell.id for cell in plan.cells})


def test_a_task_without_sizes_has_its_usual_one() -> None:
    plan = build_plan(override(suite(), {"task": ["classify", "detect", "segment"]}), device="meta", threads=1)
    sizes = {(cell.task, cell.resolution.label) for cell in plan.cells}
    assert sizes == {("classify", "224"), ("detect", "800x1280"), ("segment", "512x2048")}
    given = build_plan(override(suite(), {"task": ["detect"], "res": "64x96"}), device="cpu", threads=1)
    assert {cell.resolution.label for cell in given.cells} == {"64x96"}
    assert given.cells[0].id.endswith("/detect")


def test_threads_and_sdpa_backends_are_crossed() -> None:
    plan = build_plan(suite(threads=[1, 2], sdpa=["auto", "math"]), device="cpu", threads=4)
    assert {(cell.threads, cell.sdpa) for cell in plan.cells} == {(1, "auto"), (1, "math"), (2, "auto"), (2, "math")}


@pytest.mark.parametrize(
    ("changes", "device", "reason"),
    [
        ({"mode": ["cuda-graphs"]}, "cpu", "which a CPU lacks; use compile"),
        ({"mode": ["eager", "compile-reduce-overhead"]}, "cpu", "which a CPU lacks; use compile"),
        ({"sdpa": ["cudnn"]}, "cpu", "on a CPU there are auto, flash and math"),
        ({"mode": ["cuda-graphs"], "step": ["train"]}, "cuda:0", "captures inference"),
        ({"checkpointing": [True]}, "cpu", "add --mode train"),
        ({"batch": ["max"]}, "meta", "device meta has no limit"),
        ({"probes": ["telemetry"]}, "cpu", "while throughput samples"),
        ({"probes": ["roofline", "macs"]}, "cpu", "add both"),
    ],
)
def test_axes_that_mean_nothing_together_are_refused(changes: dict[str, Any], device: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_plan(suite(**changes), device=device, threads=1)


def test_what_a_gpu_has_is_planned_there() -> None:
    modes = ["eager", "compile", "compile-reduce-overhead", "compile-max-autotune", "cuda-graphs"]
    sdpa = ["flash", "efficient", "cudnn", "math"]
    plan = build_plan(suite(mode=modes, sdpa=sdpa, batch=[1, "max"]), device="cuda:0", threads=1)
    assert {cell.mode for cell in plan.cells} == set(modes)
    assert {cell.sdpa for cell in plan.cells} == set(sdpa)
    assert {(cell.batch, cell.batch_policy) for cell in plan.cells} == {(1, "fixed"), (0, "max")}
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.startswith("compile")])
def test_bfloat16_is_not_compiled_for_a_card_that_lacks_it(mode: str) -> None:
    t4, a100 = Card("Tesla T4", (7, 5)), Card("NVIDIA A100", (8, 0))
    crossed = {"mode": ["eager", mode], "dtype": ["float32", "bfloat16"]}
    with pytest.raises(UsageError, match=f"mode {mode} in bfloat16 needs compute capability 8.0, .* Tesla T4"):
        build_plan(suite(**crossed), device="cuda:0", threads=1, card=t4)
    for allowed, card in (
        (crossed, a100),
        (crossed, Card()),  # an unknown card
        ({**crossed, "mode": ["eager", "optimized", "cuda-graphs"]}, t4),
        ({**crossed, "dtype": ["float32", "float16"]}, t4),
    ):
        assert len(build_plan(suite(**allowed), device="cuda:0", threads=1, card=card).cells) > 1


def test_the_optimized_form_is_not_trained() -> None:
    with pytest.raises(UsageError, match="mode optimized is for inference only"):
        build_plan(suite(mode=["eager", "optimized"], step=["train"]), device="cpu", threads=1)
    plan = build_plan(suite(mode=["eager", "optimized"]), device="cpu", threads=1)
    assert {cell.mode for cell in plan.cells} == {"eager", "optimized"}


def test_the_yardstick_is_no_model_and_works_where_they_do() -> None:
    odd = suite(batch=["max"], mode=["compile"], step=["train"], dtype=["bfloat16"])
    plan = build_plan(odd, device="cpu", threads=3)
    cell = plan.yardstick
    assert (cell.model, cell.batch, cell.mode, cell.step) == ("yardstick-1", 1, "eager", "infer")
    assert (cell.dtype, cell.threads, cell.batch_policy) == ("bfloat16", 3, "fixed")
    assert plan.to_json()["yardstick"]["model"] == "yardstick-1"
    assert build_plan(suite(), device="cuda:0", threads=1).yardstick.batch == 32
    other = build_plan(suite(models=["deit_tiny"], res="96"), device="cpu", threads=1)
    assert other.yardstick == build_plan(suite(), device="cpu", threads=1).yardstick

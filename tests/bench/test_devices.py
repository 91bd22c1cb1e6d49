"""Test which GPU a device is: numbered as in CUDA, and the same card for NVML, locks, peaks and records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from command_support import invoke
from fake_nvml import GIB, FakeCard, FakeNvml, uuid_of
from run_support import FAKE_WORKER, make_plan

from sema_bench import __main__ as command
from sema_bench.analysis.roofline import Peaks
from sema_bench.cluster.backends import _visible
from sema_bench.driver import device_lock as lock_module
from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.device_lock import device_lock, held_for_child
from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.memory_fit import fits_beside, total_bytes
from sema_bench.driver.peaks import PeakCache
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.errors import UsageError
from sema_bench.machine import devices
from sema_bench.machine.devices import card_of, free_device_bytes, gpu_identity, gpu_states, gpus, resolve_device
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.record import Environment, Measurement
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import parse_suite
from sema_bench.spec.target import Card
from sema_bench.store.history import _device_name
from sema_bench.worker import survey
from sema_bench.worker.protocol import ReadFreeMemory
from sema_bench.worker.session import Session

CUDA_CELL = Cell(model="sema_tiny", height=32, width=32, device="cuda:0")
H100, T4 = FakeCard(0), FakeCard(1, "Tesla T4", capability=(7, 5), total=16 * GIB, power_limits_w=(70, 70))
SLICE = FakeCard(5, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", prefix="MIG-", total=5 * GIB, free=4 * GIB)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return FakeNvml(H100, T4).install(monkeypatch, devices)


def seen(count: int, *cards: dict[str, Any], **software: Any) -> Environment:
    """Return an environment in which torch sees ``count`` of ``cards``."""
    software = {"torch": "2.14.1", "cuda": "13.0", "cuda_devices": count, **software}
    return Environment(hardware={"gpus": list(cards)}, software=software, context={"gpus": list(cards[:count])})


def with_torch(monkeypatch: pytest.MonkeyPatch, *cards: FakeCard, archs: tuple[str, ...] = ("sm_75", "sm_90")) -> None:
    """Let torch see ``cards``, in this order."""
    facts = [
        SimpleNamespace(
            name=card.name,
            uuid=uuid_of(card.number),
            major=card.capability[0],
            minor=card.capability[1],
            total_memory=card.total,
        )
        for card in cards
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(facts))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(facts))
    monkeypatch.setattr(torch.cuda, "get_device_properties", facts.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(archs))


# --- which device --------------------------------------------------------------------------------------------------


def test_auto_takes_a_gpu_where_there_is_one(nvml: FakeNvml) -> None:
    assert resolve_device("auto") == "cuda:0"
    assert resolve_device("auto", seen(2)) == "cuda:0"
    assert resolve_device("auto", seen(0)) == "cpu"
    assert resolve_device("cpu", seen(2)) == "cpu"


def test_cuda_is_the_first_device_and_an_index_must_exist(nvml: FakeNvml) -> None:
    assert resolve_device("cuda", seen(2)) == "cuda:0"
    assert resolve_device("cuda:1", seen(2)) == "cuda:1"
    with pytest.raises(UsageError, match="the last of 2 here is cuda:1"):
        resolve_device("cuda:2", seen(2))


def test_cuda_absent_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(driver=None).install(monkeypatch, devices)
    for environment in (None, seen(0)):
        with pytest.raises(UsageError, match=r"no GPU was found; check nvidia-smi .*or use --device cpu"):
            resolve_device("cuda:0", environment)


def test_torch_counts_the_gpus_that_nvml_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Some containers get a card without NVML's library."""
    FakeNvml(driver=None).install(monkeypatch, devices)
    monkeypatch.setattr(devices, "capture", lambda: seen(2))
    assert resolve_device("auto") == "cpu", "no driver, so torch is not started"
    monkeypatch.setattr(devices, "_DRIVER_FILES", (str(tmp_path),))
    assert (resolve_device("auto"), resolve_device("cuda:1")) == ("cuda:0", "cuda:1")
    FakeNvml(H100).install(monkeypatch, devices)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") == "cpu"


def test_a_driver_that_torch_cannot_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """torch then sees no card, and the CPU must not be measured silently instead."""
    card = {"name": "Tesla T4", "driver": "450.1"}
    too_old = r"torch 2\.14\.1 cannot use Tesla T4: driver 450\.1 may be too old for its CUDA 13\.0; update the driver"
    with pytest.raises(UsageError, match=too_old):
        resolve_device("cuda", seen(0, card))
    with pytest.raises(UsageError, match=r"torch 2\.14\.1 is built without CUDA, so it cannot use Tesla T4; install"):
        resolve_device("cuda", seen(0, card, cuda=None))
    assert resolve_device("auto", seen(0, card)) == "cpu"
    assert "driver 450.1 may be too old" in capsys.readouterr().err


def test_a_torch_without_kernels_for_the_card_is_refused(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    with_torch(monkeypatch, H100, T4, archs=("sm_80", "sm_90", "compute_90"))
    cards, states = survey._gpus()
    environment = Environment(
        hardware={"gpus": cards}, software={"cuda_devices": 2, "torch": "2.14.1"}, context={"gpus": states}
    )
    assert resolve_device("cuda:0", environment) == "cuda:0"
    with pytest.raises(UsageError, match=r"no kernels for Tesla T4 \(compute capability 7\.5\); install a torch"):
        resolve_device("cuda:1", environment)


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((9, 0), ["gfx942"], None),
        ((9, 0), [], None),
    ],
)
def test_kernels_run_on_newer_cards_of_their_version(
    capability: tuple[int, int], archs: list[str], runs: bool | None
) -> None:
    assert survey.has_kernels(capability, archs) is runs


# --- which card ----------------------------------------------------------------------------------------------------


def test_gpus_are_named_with_memory_and_driver(nvml: FakeNvml) -> None:
    assert gpus()[1] == {
        "name": "Tesla T4",
        "capability": "7.5",
        "memory_bytes": 16 * GIB,
        "power_limit_w": 70,
        "max_sm_clock_mhz": 1980,
        "driver": "570.1",
    }
    assert [state["uuid"] for state in gpu_states()] == [H100.uuid, T4.uuid]


def test_a_card_that_nvml_refuses_hides_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = FakeCard(1, fails={"handle": pynvml.NVML_ERROR_NO_PERMISSION})
    jetson = FakeCard(2, "Orin", fails={"MemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED})
    FakeNvml(H100, refused, jetson).install(monkeypatch, devices)
    assert [(card["name"], card["memory_bytes"]) for card in gpus()] == [(H100.name, 80 * GIB), ("Orin", None)]
    assert gpu_identity("cuda:1") == jetson.uuid, "CUDA does not count a card that it may not open, either"
    assert free_device_bytes("cuda:1") is None


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("1", [T4]),
        ("1,0", [T4, H100]),
        (T4.uuid, [T4]),
        (T4.uuid[:12], [T4]),
        ("GPU-0", []),  # both begin like this
        ("0,9,1", [H100]),
        (SLICE.uuid, [SLICE]),
    ],
)
def test_cards_are_numbered_as_cuda_numbers_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[FakeCard]
) -> None:
    FakeNvml(H100, T4, FakeCard(2, slices=(SLICE,))).install(monkeypatch, devices)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [state["uuid"] for state in gpu_states()] == [card.uuid for card in expected]
    assert resolve_device("auto") == ("cuda:0" if expected else "cpu"), "a dry run sees the cards that CUDA will see"
    for index, card in enumerate(expected):
        assert (gpu_identity(f"cuda:{index}"), free_device_bytes(f"cuda:{index}")) == (card.uuid, card.free)


def test_of_a_card_in_mig_mode_a_slice_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeCard(2, slices=(SLICE,))
    FakeNvml(whole).install(monkeypatch, devices)
    assert gpus()[0]["name"] == SLICE.name
    assert gpu_states()[0] | {"uuid": SLICE.uuid, "mig_of": whole.uuid} == gpu_states()[0]
    assert free_device_bytes("cuda:0") == SLICE.free


def test_without_nvml_a_card_goes_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(driver=None).install(monkeypatch, devices)
    assert gpu_identity("cuda:2") == "GPU 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert [gpu_identity(f"cuda:{index}") for index in range(2)] == ["GPU 2", "GPU GPU-abc"]


def test_another_card_for_nvml_than_for_torch_is_refused(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    """CUDA_DEVICE_ORDER=FASTEST_FIRST causes this: clocks, energy and free memory would be another card's."""
    with_torch(monkeypatch, T4, H100)
    cards, states = survey._gpus()
    assert [card["memory_bytes"] for card in cards] == [16 * GIB, 80 * GIB], "facts go to torch's devices by UUID"
    environment = Environment(hardware={"gpus": cards}, software={"cuda_devices": 2}, context={"gpus": states})
    with pytest.raises(UsageError, match=f"set CUDA_VISIBLE_DEVICES=GPU-{uuid_of(1)} and use cuda:0"):
        resolve_device("cuda:0", environment)


@pytest.mark.parametrize("uuid", [5, 2])
def test_torch_may_name_a_slice_or_its_card(monkeypatch: pytest.MonkeyPatch, uuid: int) -> None:
    FakeNvml(FakeCard(2, slices=(SLICE,))).install(monkeypatch, devices)
    with_torch(monkeypatch, FakeCard(uuid, SLICE.name))
    cards, states = survey._gpus()
    environment = Environment(hardware={"gpus": cards}, software={"cuda_devices": 1}, context={"gpus": states})
    assert resolve_device("cuda", environment) == "cuda:0"


def test_torch_describes_the_cards_where_nvml_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(driver=None).install(monkeypatch, devices)
    with_torch(monkeypatch, T4)
    cards, states = survey._gpus()
    assert cards == [{"name": "Tesla T4", "capability": "7.5", "memory_bytes": 16 * GIB}]
    assert states == [{**cards[0], "torch_uuid": uuid_of(1), "kernels": True}]


def test_a_power_limit_that_moves_leaves_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop's Dynamic Boost moves the enforced limit; with it in the fingerprint, a run could not be resumed."""
    seen_at = {}
    for enforced in (80, 115):
        card = FakeCard(power_limits_w=(80, enforced))
        FakeNvml(card).install(monkeypatch, devices)
        with_torch(monkeypatch, card)
        cards, states = survey._gpus()
        seen_at[Environment(hardware={"gpus": cards}, software={}, context={"gpus": states}).fingerprint] = states
    (states,) = seen_at.values()
    assert (states[0]["power_limit_w"], states[0]["enforced_power_limit_w"]) == (80, 115)


def test_wsl_and_mps_are_in_the_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(survey.platform, "release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    facts = survey._describe()["context"]
    assert (facts["wsl"], facts["mps"]) == (True, False)
    (tmp_path / "control").touch()
    assert survey._describe()["context"]["mps"]


# --- what depends on the card --------------------------------------------------------------------------------------


def test_memory_and_names_are_those_of_the_cells_card() -> None:
    unlike = seen(2, {"name": "H100", "memory_bytes": 80}, {"name": "T4", "memory_bytes": 16, "uuid": "GPU-b"})
    assert (total_bytes(unlike, "cuda:0"), total_bytes(unlike, "cuda:1")) == (80, 16)
    hardware, context = {**unlike.hardware, "cpu": "Xeon"}, unlike.context
    plans = {device: {"plan": {"groups": [[{"device": device}]]}} for device in ("cpu", "cuda:1", "cuda:7")}
    names = [_device_name(metadata, hardware, context) for metadata in (*plans.values(), {}, {"plan": 5})]
    assert names == ["Xeon", "T4", "Xeon", "H100", "Xeon"]


def test_lanes_take_cards_by_uuid_and_refuse_unlike_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [{"name": name, "uuid": f"GPU-{name}{place}"} for place, name in enumerate(("A", "A", "B"))]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x,GPU-y,GPU-z")  # names that do not show the kind of card
    assert _visible((0, 1), seen(3, *cards)) == {0: "GPU-A0", 1: "GPU-A1"}
    with pytest.raises(UsageError, match=r"not alike \(A, B\)"):
        _visible((1, 2), seen(3, *cards))


def test_peaks_of_one_card_do_not_serve_another(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each lane calls its card cuda:0, and the fingerprint covers the whole machine."""
    peaks = {"0": Peaks(100e12, ((10**6, 3e12),)), "1": Peaks(8e12, ((10**6, 3e11),))}
    measured = []

    def cache() -> PeakCache:
        def measure(cell: Cell) -> Peaks:
            measured.append(os.environ["CUDA_VISIBLE_DEVICES"])
            return peaks[measured[-1]]

        return PeakCache("abc", measure, folder=tmp_path)

    lanes = [cache(), cache()]  # both have read the file before either writes it
    for visible, lane in enumerate(lanes):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(visible))
        assert lane.of(CUDA_CELL) == peaks[str(visible)]
    for visible in "01":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cache().of(CUDA_CELL) == peaks[visible]
    assert measured == ["0", "1"]


def test_a_card_is_locked_by_its_uuid(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    here = lock_module._identity("cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", T4.uuid[:13])
    assert lock_module._identity("cuda:0") == here == T4.uuid


def plan_on_cuda(*probes: str) -> Plan:
    group = (Cell(model="good", height=64, width=64, device="cuda:0", allocator="default"),)
    return Plan(suite="fake", groups=(group,), probes=probes, sampling=Sampling(time_limit_s=1.0))


def test_a_plain_run_on_a_card_waits_for_the_process_that_holds_it(nvml: FakeNvml, tmp_path: Path) -> None:
    """Otherwise two runs of one user would be timed on one card at once."""
    plan = plan_on_cuda("params", "throughput")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, unittest.mock as mock; from sema_bench.driver import device_lock as m\n"
            f"with mock.patch.object(m, 'gpu_identity', return_value={H100.uuid!r}), m.device_lock('cuda:0'):\n"
            "    print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waits = []

    def release(message: str) -> None:
        waits.append(message)
        holder.kill()

    executor = LocalExecutor(plan, worker_command=FAKE_WORKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_module, "tell", release)
        (record,) = executor.run([(plan.cells, {})])
    executor.close()
    holder.kill()
    holder.communicate()
    assert waits == [f"cuda:0: waiting for process {holder.pid}, which measures on it"]
    assert record.status == "ok"
    assert record.details["gpu"] == H100.uuid


@pytest.fixture
def no_wait(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a card, where waiting is an error: this process would wait for itself."""

    def refuse(message: str) -> None:
        raise AssertionError(message)

    monkeypatch.setattr(lock_module, "tell", refuse)


def test_a_card_is_free_after_a_run_that_was_stopped_and_while_cells_are_counted(no_wait: None) -> None:
    stopped = LocalExecutor(plan_on_cuda("throughput"), worker_command=FAKE_WORKER)
    records = stopped.run([(plan_on_cuda("throughput").cells, {})])
    next(records)  # the generator stays alive, as in a traceback
    stopped.cancel()
    with device_lock("cuda:0"):
        plan = plan_on_cuda("params")
        counting = LocalExecutor(plan, worker_command=FAKE_WORKER)
        assert [record.status for record in counting.run([(plan.cells, {})])] == ["ok"]
        counting.close()


def test_a_child_does_not_wait_for_the_card_that_its_parent_holds_for_it(
    no_wait: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device_lock("cuda:0"):
        for name, value in held_for_child("cuda:0").items():
            monkeypatch.setenv(name, value)
        with device_lock("cuda:0"), device_lock("cuda:1"):
            pass


@pytest.mark.parametrize("arguments", [["selftest"], ["gate", "run", "--base", "HEAD"], ["gate", "selftest"]])
def test_commands_that_time_refuse_a_card_that_torch_cannot_use(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    card = {"name": H100.name, "capability": "9.0", "kernels": False}
    monkeypatch.setattr(devices, "capture", lambda: seen(1, card))
    code, _, err = invoke(*arguments, "--device", "cuda:0")
    assert code == 2
    assert "has no kernels for" in err
    assert len(err.splitlines()) == 1


def test_models_share_a_card_only_while_they_fit() -> None:
    reserved = Measurement(metric="peak_reserved_bytes", value=4 * GIB)
    attempt = CellAttempt(CUDA_CELL, measurements={"peak_reserved_bytes": reserved})
    assert fits_beside(attempt, 10 * GIB)
    assert not fits_beside(attempt, 5 * GIB)


def test_a_worker_reads_the_free_memory_where_nvml_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise models would be measured one by one, and --batch max would be refused."""
    FakeNvml(driver=None).install(monkeypatch, devices)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {"cuda:0": (7 * GIB, 8 * GIB)}[device])
    session = Session()
    monkeypatch.setattr(WorkerPool, "ask", lambda pool, role, attempt, request: session.memory(request))
    pool, attempt = WorkerPool(make_plan().sampling), CellAttempt(CUDA_CELL)
    assert session.memory(ReadFreeMemory("cuda:0")).free_bytes == pool.free_bytes("timer", attempt) == 7 * GIB
    FakeNvml(H100).install(monkeypatch, devices)
    assert pool.free_bytes("timer", attempt) == H100.free


def test_what_a_card_can_do_is_known_before_and_after_torch_is_asked(nvml: FakeNvml) -> None:
    assert card_of("cuda:1") == Card("Tesla T4", (7, 5), "DEFAULT")
    facts = {"name": "A30", "capability": "8.0", "compute_mode": "EXCLUSIVE_PROCESS"}
    assert card_of("cuda:0", seen(1, facts)) == Card("A30", (8, 0), "EXCLUSIVE_PROCESS")
    assert card_of("cpu") == Card()
    assert not card_of("cuda:0", seen(1)).is_before_ampere, "what is unknown is not refused"


def test_a_card_without_tf32_gets_no_cells_called_so() -> None:
    suite = parse_suite({"name": "s", "models": ["sema_tiny"], "res": "64", "tf32": [False, True]}, source="s.toml")
    tf32 = [
        [cell.tf32 for cell in build_plan(suite, device="cuda:0", threads=1, card=Card("x", capability)).cells]
        for capability in ((7, 5), (8, 0), None)
    ]
    assert tf32 == [[False], [False, True], [False, True]]


def test_every_command_numbers_cards_as_nvml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """train runs torch in the command's process, and CUDA's default is FASTEST_FIRST."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.setattr(sys, "argv", ["sema-bench", "--version"])
    with pytest.raises(SystemExit):
        command.main()
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"

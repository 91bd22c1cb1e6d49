"""Test the code behind a model's name: neighbours, packages and files found at run time count; nothing is run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from command_support import invoke
from run_support import ENVIRONMENT, make_plan, ok_record, quiet_progress

from sema.models import MODELS
from sema_bench.driver.schedule import Schedule
from sema_bench.errors import NewerReleaseError, StoreError, UsageError
from sema_bench.spec import model_code, model_source
from sema_bench.spec.model_code import MODEL_FILES, code_of_file, code_of_module
from sema_bench.spec.model_source import check_networks_differ, check_packages, packages_of, parse_source, split_models
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.store.run_folder import RunFolder
from sema_bench.worker.build_model import build_foreign
from sema_bench.worker.model_imports import uncovered_files

NET = "from torch import nn\n{imports}\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width()))\n"
WIDTH = "def width(): return {}\n"


def write(folder: Path, **files: str) -> Path:
    """Write ``parts__a=…`` to parts/a.py, ``parts__init=…`` to parts/__init__.py; return the path of net.py."""
    for name, text in files.items():
        *folders, stem = name.split("__")
        path = folder.joinpath(*folders, "__init__.py" if stem == "init" else f"{stem}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "net.py"


def test_a_file_without_neighbours_keeps_the_digest_of_its_bytes(tmp_path: Path) -> None:
    net = write(tmp_path, net="import torch, math\ndef build(): ...\n")
    assert code_of_file(net).digest == hashlib.sha256(net.read_bytes()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("imports", "files"),
    [
        ("from layers import width", {"layers": WIDTH}),
        ("import layers\nwidth = layers.width", {"layers": WIDTH}),
        ("from layers import width", {"layers": "from deep import width\n", "deep": WIDTH}),
        ("from parts.layers import width", {"parts__init": "", "parts__layers": WIDTH}),
        ("from parts import width", {"parts__init": "from .w import width\n", "parts__w": WIDTH}),
        ("from parts.a.b import width", {"parts__a__b": "from ..c import width\n", "parts__c": WIDTH}),
        ("from parts import layers\nwidth = layers.width", {"parts__layers": WIDTH}),
        ("def width():\n    from layers import w\n    return w", {"layers": "w = {}\n"}),
        ("import importlib\nwidth = importlib.import_module('layers').width", {"layers": WIDTH}),
        ("try:\n    from fast import width\nexcept ImportError:\n    from w import width", {"w": WIDTH}),
    ],
)  # fmt: skip
def test_what_a_file_imports_from_beside_it_is_part_of_its_name(
    imports: str, files: dict[str, str], tmp_path: Path
) -> None:
    net = write(tmp_path, net=NET.format(imports=imports), **{name: text.format(16) for name, text in files.items()})
    before = parse_source(f"{net}:build")
    assert parse_source(before.name) == before
    write(tmp_path, **{name: text.format(32) for name, text in files.items()})
    assert parse_source(f"{net}:build").name != before.name
    with pytest.raises(UsageError, match=r"net\.py, or one of the files that it imports .*, has changed"):
        parse_source(before.name)


def test_a_neighbour_that_is_not_imported_does_not_count(tmp_path: Path) -> None:
    net = write(tmp_path, net="def build(): ...\n", other="x = 1\n")
    before = parse_source(f"{net}:build").name
    write(tmp_path, other="x = 2\n")
    assert parse_source(f"{net}:build").name == before


def test_an_import_that_goes_round_ends(tmp_path: Path) -> None:
    net = write(tmp_path, net="import a\ndef build(): ...\n", a="import b\n", b="import a, net\n")
    assert set(code_of_file(net).files) == {"net.py", "a.py", "b.py"}


def test_packages_count_by_their_version(tmp_path: Path) -> None:
    net = write(tmp_path, net="import numpy as np\nimport PIL.Image\ndef build(): ...\n")
    versions = {"numpy": importlib.metadata.version("numpy"), "PIL": importlib.metadata.version("pillow")}
    assert code_of_file(net).packages == versions
    assert list(code_of_file(net).files) == ["net.py"]


def test_code_of_an_installed_package_is_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, mine__init="", mine__models="from mine.width import w\n", mine__width="w = 1\n", mine__other="")
    monkeypatch.setattr(model_code, "_SEARCH_PATH", [str(tmp_path)])
    before = code_of_module("mine.models", None)
    assert set(before.files) == {"mine/__init__.py", "mine/models.py", "mine/width.py"}
    write(tmp_path, mine__width="w = 2\n")
    assert code_of_module("mine.models", None).digest != before.digest


def test_two_files_each_get_their_own_neighbour_of_one_name(tmp_path: Path) -> None:
    for folder, width in (("a", 3), ("b", 5)):
        write(
            tmp_path / folder,
            net=NET.format(imports="from layers import width"),
            layers=f"def width(): return {width}\n",
        )
    size = Resolution(32, 32)
    built = [build_foreign(parse_source(f"{tmp_path / folder}/net.py:build"), size) for folder in ("a", "b", "a")]
    assert [model[1].out_features for model in built] == [3, 5, 3]


def test_a_file_found_only_at_run_time_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", found_late="def width(): return 4\n")
    imports = f"import sys\nsys.path.insert(0, {str(tmp_path / 'elsewhere')!r})\nfrom found_late import width"
    net = write(tmp_path, net=NET.format(imports=imports))
    name = parse_source(f"{net}:build").name
    build_foreign(parse_source(name), Resolution(32, 32))
    assert list(uncovered_files(net)) == [str(tmp_path / "elsewhere" / "found_late.py")]
    assert parse_source(name).name == name, "what the model did to sys.path changes no digest"


def test_a_file_that_changes_during_a_run_ends_its_cells_in_an_error(tmp_path: Path) -> None:
    class Executor:
        def run(self, groups: object) -> object:
            for side, digest in ((32, "a"), (64, "a"), (96, "b")):
                yield Record(**{**vars(ok_record("good", side)), "details": {MODEL_FILES: {"/x/layers.py": digest}}})

    plan = make_plan(["good"], (32, 64, 96))
    run = RunFolder.create(tmp_path, "fake", "run")
    with run.lock():
        records = Schedule(plan, run, environment=ENVIRONMENT).run(Executor(), quiet_progress())
    assert [record.status for record in records] == ["ok", "ok", "error"]
    assert records[-1].reason == "/x/layers.py, which the model imports or reads, has changed during this run"
    assert not records[-1].measurements


def test_a_package_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    metadata = {model_source.PACKAGES: packages_of(["timm:resnet18", "sema_micro"])}
    assert list(metadata[model_source.PACKAGES]) == ["timm:resnet18"]
    check_packages("r", ["timm:resnet18", "sema_micro"], metadata)
    check_packages("r", ["timm:resnet18"], {})  # runs of older releases do not store them
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(UsageError, match=r"run r has timm:resnet18 from timm .*, and here it is from timm 0\.0\.1"):
        check_packages("r", ["timm:resnet18"], metadata)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sema_micro", "sema_micro[sema]"),
        ("sema_micro", "sema_micro[sema,window_size=7]"),
        ("sema_micro[head=mean]", "sema_micro"),
        ("sema_micro[linear,qkv_bias=true]", "sema_micro[linear]"),
        ("vmamba_tiny_s1l8[scan=auto]", "vmamba_tiny_s1l8"),
    ],
)
def test_one_network_under_two_names_is_refused_in_the_words_of_both(one: str, other: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_networks_differ([one, other])
    assert parse_source(one).name in str(caught.value)
    assert parse_source(other).name in str(caught.value)


def test_networks_that_differ_pass() -> None:
    check_networks_differ(["sema_micro", "sema_micro[linear]", "sema_micro[window_size=14]", "mila_tiny", "sema_micro"])


def test_a_comma_in_a_path_belongs_to_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my models, v2", net="def build(): ...\n")
    names = ["sema_micro[sema,window_size=14]", "my models, v2/net.py:build", "deit_small"]
    assert split_models(", ".join(names)) == names
    assert split_models("a,b/net.py:build") == ["a", "b/net.py:build"], "no such file: two names"
    assert parse_source("my models, v2/net.py:build").target == "my models, v2/net.py"


def test_all_stands_for_every_model_of_the_registry() -> None:
    assert split_models("timm:resnet18,all") == ["timm:resnet18", *MODELS]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, net="def build(): ...\n")
    assert parse_source("~/net.py:build").target == str(tmp_path / "net.py")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("timm:vit_tiny_patch16_224[dynamic_img_size=True]", "timm:vit_tiny_patch16_224[dynamic_img_size=True]"),
        ("timm:resnet18[ drop_rate=0.1 , act_layer=silu ]", "timm:resnet18[act_layer=silu,drop_rate=0.1]"),
        ("timm:hf_hub:timm/resnet18.a1_in1k", "timm:hf_hub:timm/resnet18.a1_in1k"),
        ("torchvision:resnet18", "torchvision:resnet18"),
    ],
)
def test_models_of_libraries_have_options_and_one_name(text: str, name: str) -> None:
    pytest.importorskip(text.partition(":")[0])
    assert parse_source(text).name == name
    assert parse_source(name) == parse_source(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet19", "unknown model of timm .* 'resnet19'; did you mean 'resnet18'"),
        ("torchvision:resnet", "unknown model of torchvision .* 'resnet'; did you mean"),
        ("timm:resnet18[pretrained=true]", "pretrained is set by the benchmark; drop it"),
        ("timm:resnet18[checkpoint_path=x.pth]", "checkpoint_path is set by the benchmark; drop it"),
        ("timm:resnet18[a=1,a=2]", "option 'a' is given twice"),
        ("timm:resnet18[x]", "'x' is not option=value"),
        ("torchvision:hf_hub:a/b", "write torchvision:NAME"),
    ],
)
def test_a_library_that_does_not_have_it_is_reported_before_anything_starts(text: str, message: str) -> None:
    pytest.importorskip(text.partition(":")[0])
    with pytest.raises(UsageError, match=message):
        parse_source(text)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("sema_micro[window_size=0]", "'sema_micro[window_size=0]' cannot be built: window_size must be at least 1"),
        ("sema_micro[head=nosuch]", "cannot be built: head must be one of"),
        ("timm:resnet18[foo=1]", "cannot be built: timm refuses an option: .*foo"),
        ("timm:resnet18.nosuch", "cannot be built: timm .*nosuch"),
    ],
)
def test_a_dry_run_refuses_what_cannot_be_built(model: str, says: str) -> None:
    if model.startswith("timm"):
        pytest.importorskip("timm")
    code, out, err = invoke("scale", "--dry-run", "--models", model, "--res", "64")
    assert (code, out) == (2, "")
    assert all(part in err for part in says.split(".*"))


def test_records_of_a_newer_release_are_refused_everywhere_and_left_alone(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "results", "x", "r", metadata={"schema_version": 1})
    line = json.dumps({**json.loads(ok_record().to_json()), "schema_version": 2})
    run.records_path.write_text(f"{ok_record().to_json()}\n{line}\n")
    before = run.records_path.read_bytes()
    for read in (run.metadata, run.records, run.read):
        with pytest.raises(NewerReleaseError, match="written by a newer release of sema-bench: schema version 2"):
            read()
    with run.lock(), pytest.raises(StoreError):
        run.quarantine()
    for command in (["export", "r"], ["compare", "r", "r"], ["report", "r"], ["scale", "--resume", "r"]):
        code, _, err = invoke(*command, "--out", str(tmp_path / "results"))
        assert code == 4
        assert "records.jsonl: written by a newer release" in err
    _, _, err = invoke("history", "--out", str(tmp_path / "results"))
    assert "left out" in err
    assert "written by a newer release" in err
    assert run.records_path.read_bytes() == before
    assert [path.name for path in run.path.iterdir() if path.suffix == ".jsonl"] == ["records.jsonl"]


def test_a_model_file_that_is_gone_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = write(tmp_path, net="def build(): ...\n")
    plan = make_plan([parse_source("net.py:build").name], (64,)).to_json()
    net.unlink()
    with pytest.raises(
        UsageError, match=r"^model file 'net\.py' cannot be read: No such file or directory; write a file"
    ):
        Plan.from_json(plan)


def measured_run(root: Path, name: str, *, model: str, packages: dict[str, str], files: dict[str, str]) -> None:
    record = ok_record(model)
    details = {MODEL_FILES: files} if files else {}
    environment = {"fingerprint": ENVIRONMENT, "hardware": {"cpu": "x"}, "software": {"torch": "2"}}
    metadata = {"schema_version": 1, "created_at": name, "environment": environment, model_source.PACKAGES: packages}
    run = RunFolder.create(root, "x", name, metadata=metadata)
    with run.lock():
        run.append(Record(**{**vars(record), "details": details}))


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"model": "net.py:build@11111111"}, {"model": "net.py:build@22222222"}, "11111111 | 22222222"),
        ({"packages": {"good": "timm 1.0.30"}}, {"packages": {"good": "timm 1.0.31"}}, "timm 1.0.30 | timm 1.0.31"),
        ({"files": {"/x/deep.py": "aaaa"}}, {"files": {"/x/deep.py": "bbbb"}}, "/x/deep.py"),
    ],
)
def test_a_comparison_says_where_a_model_was_built_by_other_code(
    before: dict[str, object], after: dict[str, object], says: str, tmp_path: Path
) -> None:
    for name, changes in (("a", before), ("b", after), ("c", before)):
        measured_run(tmp_path, name, **{"model": "good", "packages": {}, "files": {}, **changes})
    code, out, err = invoke("compare", "a", "b", "--metric", "latency_s", "--out", str(tmp_path))
    assert code == 0, err
    assert "built from different code in the other run (1)" in out
    assert says in out
    assert (
        f"other code: {says}"
        in invoke("compare", "a", "b", "--metric", "latency_s", "--out", str(tmp_path), "--csv", "-")[1]
        or "/x" in says
    )
    assert "other code" not in invoke("compare", "a", "c", "--metric", "latency_s", "--out", str(tmp_path))[1]


def test_history_shows_the_packages_and_no_change_across_them(tmp_path: Path) -> None:
    for name, version in (("1", "1.0.30"), ("2", "1.0.30"), ("3", "1.0.31")):
        measured_run(tmp_path, name, model="sema_micro", packages={"sema_micro": f"timm {version}"}, files={})
    _, out, _ = invoke("history", "--model", "sema_micro", "--out", str(tmp_path), "--csv", "-")
    assert [line.split(",")[5] for line in out.splitlines()] == [
        "model_packages",
        "timm 1.0.30",
        "timm 1.0.30",
        "timm 1.0.31",
    ]
    _, out, _ = invoke("history", "--model", "sema_micro", "--out", str(tmp_path))
    assert "model's packages" in out
    assert out.count("+0.0%") == 1, "from the first run to the second, and not to the third"


def test_packages_elsewhere_count_file_by_file_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pa", "pb"):
        write(
            tmp_path / "src",
            **{f"{name}__init": f"from {name} import layers\n", f"{name}__layers__init": f"import {name}\n"},
        )
    monkeypatch.setattr(model_code, "_SEARCH_PATH", [str(tmp_path / "src")])
    net = write(tmp_path / "here", net="import pa, pb\ndef build(): ...\n")
    before = code_of_file(net)
    assert set(before.files) == {
        "net.py",
        *(f"{p}/{f}" for p in ("pa", "pb") for f in ("__init__.py", "layers/__init__.py")),
    }
    write(tmp_path / "src", pb__init="from pb import layers\nW = 64\n")
    assert code_of_file(net).digest != before.digest


def test_a_file_that_a_model_reads_counts_for_that_model_alone(tmp_path: Path) -> None:
    (tmp_path / "width.txt").write_text("16")
    reads = (
        f"from pathlib import Path\ndef width():\n    return int(Path({str(tmp_path / 'width.txt')!r}).read_text())\n"
    )
    net = write(tmp_path, net=NET.format(imports=reads), other=NET.format(imports="def width(): return 4"))
    other = tmp_path / "other.py"
    for path in (net, other, net):
        build_foreign(parse_source(f"{path}:build"), Resolution(32, 32))
    assert list(uncovered_files(net)) == [str(tmp_path / "width.txt")]
    build_foreign(parse_source(f"{other}:build"), Resolution(32, 32))
    assert uncovered_files(other) == {}


def test_an_import_in_forward_is_noted(tmp_path: Path) -> None:
    late = "import importlib\nfrom torch import nn\nclass N(nn.Module):\n    def forward(self, x):\n"
    late += "        importlib.import_module('la' + 'te')\n        return x.mean((2, 3))\ndef build(): return N()\n"
    net = write(tmp_path, net=late, late="x = 1\n")
    build_foreign(parse_source(f"{net}:build"), Resolution(32, 32))(torch.zeros(1, 3, 32, 32))
    assert list(uncovered_files(net)) == [str(tmp_path / "late.py")]


def test_what_a_compiler_has_made_is_no_file_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "cache", compiled_graph="")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    imports = (
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'cache')!r})\nimport compiled_graph\ndef width(): return 4"
    )
    net = write(tmp_path, net=NET.format(imports=imports))
    build_foreign(parse_source(f"{net}:build"), Resolution(32, 32))
    assert uncovered_files(net) == {}


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "/no/such/file"])
def test_the_digest_of_what_is_no_file_is_empty(path: str) -> None:
    assert model_code.file_digest(Path(path)) == ""

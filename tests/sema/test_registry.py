"""Test names: the models and attentions they build, errors for wrong names, and imports while listing them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sema
from sema.attention import ATTENTIONS
from sema.attention.base import Attention
from sema.macs import Macs, conv_macs, linear_macs, total_macs
from sema.model_name import ModelName, parse_model_name
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema.registry import Registry, UnknownNameError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sema.list_attentions())
def test_every_attention_loads_and_has_a_summary(name):
    target = ATTENTIONS.load(name)
    assert issubclass(target, Attention)
    assert ATTENTIONS.summary(name) == target.__doc__.splitlines()[0]
    assert 20 < len(ATTENTIONS.summary(name)) < 100


@pytest.mark.parametrize("name", sema.list_attentions())
def test_every_attention_cites_its_paper_and_states_its_deviations(name):
    text = sys.modules[ATTENTIONS.load(name).__module__].__doc__
    for heading in ("arXiv", "Equation", "Complexity", "Deviations from the paper"):
        assert heading in text


@pytest.mark.parametrize("name", sema.list_models())
def test_every_model_loads_and_has_a_summary(name):
    assert callable(MODELS.load(name))
    assert re.fullmatch(r".+: .+; \d+\.\d M parameters\.", MODELS.summary(name))


def test_the_options_of_a_preset_are_those_of_its_class_with_its_own_defaults():
    assert list(inspect.signature(MODELS.load("swin_tiny")).parameters) == list(MODELS.options("swin_tiny"))
    assert {key: option.default for key, option in MODELS.options("swin_tiny").items()} == {
        "num_classes": 1000,
        "in_chans": 3,
        "drop_path_rate": 0.2,
        "windows": "masked",
    }
    assert MODELS.options("mila_base")["attention"].default == "mila"
    assert "depth" not in MODELS.options("vim_tiny")


def test_a_default_of_a_preset_may_be_replaced_and_its_structure_may_not():
    with torch.device("meta"):
        model = sema.create_model("swin_tiny", drop_path_rate=0.1)
        assert max(block.drop_path.rate for stage in model.layers for block in stage.blocks) == 0.1
        with pytest.raises(TypeError, match="model 'swin_tiny' has no option 'depths'; declared: num_classes"):
            sema.create_model("swin_tiny", depths=(1, 1, 1, 1))
        with pytest.raises(TypeError, match="depths"):
            MODELS.load("swin_tiny")(depths=(1, 1, 1, 1))


def test_swappable_models_are_those_of_milas_backbone():
    swappable = {"sema_micro", "sema_tiny", "sema_small", "sema_base", "mila_tiny", "mila_small", "mila_base"}
    assert swappable == ATTENTION_SWAPPABLE


def test_the_error_for_an_unknown_name_lists_similar_names():
    with pytest.raises(UnknownNameError, match=r"unknown attention 'semma'; did you mean 'sema'.*known: .*softmax"):
        sema.create_attention("semma", dim=8, num_heads=1)
    with pytest.raises(UnknownNameError, match="unknown model 'zzz'; known: sema_tiny"):
        sema.create_model("zzz")


def test_a_duplicate_name_or_a_malformed_target_is_refused():
    with pytest.raises(ValueError, match="duplicate thing 'a'"):
        Registry("thing", ("a", "m:x"), ("a", "m:y"))
    with pytest.raises(ValueError, match="expected 'module:attribute'"):
        Registry("thing", ("a", "m.x"))


def test_an_option_that_is_not_declared_is_refused_by_name():
    with pytest.raises(TypeError, match="attention 'softmax' has no option 'window_size'; declared: scale, qkv_bias"):
        sema.create_attention("softmax", dim=8, num_heads=1, window_size=7)
    with pytest.raises(TypeError, match="model 'deit_tiny' has no option 'depth'"):
        sema.create_model("deit_tiny", depth=3)
    with torch.device("meta"), pytest.raises(TypeError, match="attention 'softmax' has no option 'window_size'"):
        sema.create_model("sema_tiny", attention="softmax", attention_options={"window_size": 7})


def test_a_model_without_a_swappable_attention_says_so():
    with pytest.raises(ValueError, match="cannot be replaced"):
        sema.create_model("deit_small", attention="sema")
    with pytest.raises(ValueError, match="models that allow it: sema_tiny"):
        parse_model_name("deit_small[sema]")


def test_options_of_a_model_whose_attention_stays_are_its_own():
    name = parse_model_name("deit_tiny[img_size=96]")
    assert str(name) == "deit_tiny[img_size=96]"
    with torch.device("meta"):
        assert sema.create_model("deit_tiny[img_size=96]").pos_embed.shape[1] == 37
        assert sema.create_model("deit_tiny[img_size=96]", img_size=64).pos_embed.shape[1] == 17
    for text in ("deit_tiny[depth=3]", "deit_tiny[num_classes=3]"):
        with pytest.raises(ValueError, match="model 'deit_tiny' has no option"):
            parse_model_name(text)


def test_model_names_carry_an_attention_and_its_options():
    name = parse_model_name("sema_tiny[sema, window_size=14,lepe=false,scale=none]")
    assert name == ModelName("sema_tiny", "sema", {"window_size": 14, "lepe": False, "scale": None})
    with torch.device("meta"):
        model = sema.create_model("sema_tiny[sema,window_size=14]")
        own = sema.create_model("sema_tiny[window_size=14]")
    for built in (model, own):
        assert {block.attn.window_size for stage in built.layers for block in stage.blocks} == {14}


def test_an_attention_named_twice_is_refused():
    with pytest.raises(ValueError, match="names an attention already"):
        sema.create_model("sema_tiny[linear]", attention="softmax")


def test_importing_sema_and_listing_names_imports_neither_torch_nor_sema_bench():
    code = (
        "import sys, sema; sema.list_attentions(); sema.list_models(); "
        "from sema.attention import ATTENTIONS; [ATTENTIONS.summary(n) for n in ATTENTIONS]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sema_bench')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_module_of_sema_imports_sema_bench():
    guilty = [path.name for path in (ROOT / "sema").rglob("*.py") if "sema_bench" in path.read_text(encoding="utf-8")]
    assert guilty == []


def test_macs_add_up_part_by_part():
    total = total_macs(Macs(attention=1), linear_macs(2, 3, 5), conv_macs((2, 4), 6, 6, 3, groups=6))
    assert total == Macs(attention=1, projection=30, convolution=8 * 6 * 9)
    assert total.total == 1 + 30 + 432

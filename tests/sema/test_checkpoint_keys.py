"""Test which keys of a checkpoint are the model's: prefixes, wrappers, and what lies beside the weights."""

from __future__ import annotations

import pytest
import torch
from checkpoint_cases import NOTHING, same, small_model, weights

import sema
from sema.checkpoints import CheckpointError, load_checkpoint


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def in_the_middle(part, state):
    """Return ``state`` as if the first module of every key were wrapped."""
    keys = (key.partition(".") for key in state)
    return {f"{first}.{part}.{rest}": value for (first, _, rest), value in zip(keys, state.values(), strict=True)}


def without_head(state):
    return {key: value for key, value in state.items() if not key.startswith("head.")}


@pytest.mark.parametrize(
    "part",
    [
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_orig_mod._checkpoint_wrapped_module",
    ],
)
def test_parts_that_wrappers_add_to_keys_are_taken_out_wherever_they_are(part):
    model, other = small_model(), small_model()
    state = {key: value for key, value in weights(model).items() if "." in key}
    for wrapped in (in_the_middle(part, state), under(f"{part}.", in_the_middle(part, state))):
        assert load_checkpoint(other, {"state_dict": wrapped}) == NOTHING
        assert same(weights(other), weights(model))


def test_a_part_of_the_models_own_keys_is_not_taken_for_a_wrappers():
    class Twice(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.module = torch.nn.Linear(2, 2)

    model, other = Twice(), Twice()
    for state in (weights(model), under("module.", weights(model)), under("_orig_mod.", weights(model))):
        load_checkpoint(other, state)
        assert same(weights(other), weights(model))


def test_a_wrapped_model_takes_the_keys_of_a_plain_one():
    model, other = small_model(), small_model()
    assert load_checkpoint(torch.compile(other), weights(model)) == NOTHING
    assert same(weights(other), weights(model))


def test_counters_that_tools_leave_on_modules_are_dropped_and_named():
    model, other = small_model(), small_model()
    owners = {key.rpartition(".")[0] for key in weights(model)}
    counters = {f"{owner}.{name}": torch.zeros(1) for owner in owners for name in ("total_ops", "total_params")}
    report = load_checkpoint(other, weights(model) | counters | {"total_ops": torch.zeros(1)})
    assert report.fits
    assert set(report.dropped) == {"*.total_ops", "*.total_params", "total_ops"}
    assert same(weights(other), weights(model))
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    assert load_checkpoint(other, averaged).dropped == ("n_averaged",)


@pytest.mark.parametrize(
    ("wrap", "dropped"),
    [
        (lambda s: under("model.", s) | {"criterion.weight": torch.zeros(3), "epoch": 3}, ("criterion.*",)),
        (
            lambda s: {"state_dict": under("model.", s) | {"loss.weight": torch.ones(1)}, "hyper_parameters": {"a": 1}},
            ("state_dict.loss.*",),
        ),
        (lambda s: under("module.", s) | {"step": torch.tensor(1)}, ("step",)),
        (lambda s: {"model": s, "model_ema": {k: v + 1 for k, v in s.items()}}, ("model_ema.*",)),
        (lambda s: under("backbone.", s) | {"neck.weight": torch.zeros(1)}, ("neck.*",)),
        (lambda s: under("module.encoder_q.", s) | {"queue": torch.zeros(1)}, ("queue",)),
        (lambda s: {"teacher": under("module.", s)}, ()),
        (
            lambda s: {
                "optimizer": {"exp_avg": under("backbone.", s)},
                "ema": under("backbone.", s),
                "model": under("backbone.", s),
            },
            ("optimizer.*", "ema.*"),
        ),
        (lambda s: {"ema": under("ema_model.", s) | under("online_model.", s)}, ("ema.online_model.*",)),
        (
            lambda s: under("teacher.", s) | under("student.", weights(small_model(stages=((16, 4, 1), (32, 8, 1))))),
            ("student.*",),
        ),
    ],
    ids=["flat", "lightning", "module", "average", "backbone", "moco", "nested", "copies", "ema-pytorch", "by shape"],
)
def test_a_prefix_that_covers_the_model_is_taken_and_the_rest_named(wrap, dropped):
    model, other = small_model(), small_model()
    report = load_checkpoint(other, wrap(weights(model)))
    assert report == NOTHING._replace(dropped=dropped)
    assert same(weights(other), weights(model))


def test_keys_beside_those_of_the_model_are_refused_where_no_prefix_parts_them():
    """They may be layers of another network."""
    state = weights(small_model()) | {"aux.weight": torch.zeros(1)}
    for wrapped in (state, {"model": state}):
        with pytest.raises(CheckpointError, match=r"1 unexpected: aux\.weight"):
            load_checkpoint(small_model(), wrapped)


def test_two_prefixes_that_cover_the_model_are_both_named():
    state = weights(small_model())
    with pytest.raises(CheckpointError, match=r"2 times, under 'student\.' and 'teacher\.module\.'; save the keys"):
        load_checkpoint(small_model(), {"student": state, "teacher": under("module.", state)})


def test_a_prefix_that_covers_all_but_the_classifier_is_named():
    state = under("encoder.", without_head(weights(small_model()))) | {"fc.weight": torch.zeros(5, 16)}
    with pytest.raises(
        CheckpointError, match=r"85 of the model's 87 keys are there under 'encoder\.', without head\.b"
    ):
        load_checkpoint(small_model(), state)


def test_differences_are_those_of_the_prefix_under_which_most_of_the_model_is():
    model = torch.nn.Sequential()
    model.add_module("net", torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))
    state = weights(model)
    del state["net.1.bias"]
    for wrapped in (state, {"model": state, "model_ema": state}, under("module.", state)):
        report = load_checkpoint(model, wrapped, strict=False)
        assert (report.missing, report.unexpected) == (("net.1.bias",), ())


def test_mappings_that_hold_themselves_or_are_shared_a_million_times_end():
    state = weights(small_model())
    body = {"model": state}
    body["self"] = body
    for _ in range(30):
        body = {"model": state, **{f"key{index}": body for index in range(20)}}
    assert load_checkpoint(small_model(), body).fits


def test_lazy_layers_are_refused_in_words():
    with pytest.raises(CheckpointError, match="lazy layers"):
        load_checkpoint(torch.nn.LazyLinear(3), {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)})


class Classifier(torch.nn.Module):
    """A network whose classifier is called ``name``."""

    def __init__(self, name, classes, *, convolution=False, bias=True, heads=1):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 1)
        for index in range(heads):
            last = torch.nn.Conv2d(8, classes, 1, bias=bias) if convolution else torch.nn.Linear(8, classes, bias=bias)
            self.add_module(f"{name}{index or ''}", torch.nn.Sequential(torch.nn.Identity(), last))


@pytest.mark.parametrize("name", ["fc", "classifier", "last_linear", "logits"])
@pytest.mark.parametrize("options", [{}, {"convolution": True}, {"bias": False}, {"heads": 2}], ids=str)
def test_the_number_of_classes_is_known_whatever_the_classifier_is_called(name, options):
    with pytest.raises(CheckpointError, match="has 4 classes; build the model with num_classes=4") as caught:
        load_checkpoint(Classifier(name, 10, **options), weights(Classifier(name, 4, **options)))
    assert caught.value.classes == 4


def test_other_differences_are_not_taken_for_a_number_of_classes():
    state = weights(Classifier("fc", 4))
    for other in (
        {"stem.weight": torch.zeros(8, 1, 1, 1)},  # grey images
        {"fc.1.bias": torch.zeros(5)},
        {"stem.weight": torch.zeros(16, 3, 1, 1), "stem.bias": torch.zeros(16)},
    ):
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(Classifier("fc", 10), state | other)
        assert caught.value.classes is None
    table = torch.nn.ParameterDict({"table": torch.zeros(169, 3)})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(table, {"table": torch.zeros(225, 3)})
    assert caught.value.classes is None


@pytest.mark.parametrize("elsewhere", ["model_ema", "grads", "initial_state"])
def test_incomplete_weights_are_refused_whatever_covers_the_model_elsewhere(elsewhere):
    model = sema.create_model("sema_micro", num_classes=3)
    full = model.state_dict()
    part = {key: value for key, value in full.items() if not key.startswith("head.")}
    with pytest.raises(sema.CheckpointError, match="2 missing: head"):
        sema.load_checkpoint(model, {"model": part, elsewhere: full})


@pytest.mark.parametrize("name", ["optimizer.momentum", "grads", "exp_avg", "initial_state"])
def test_tensors_that_only_have_the_names_of_weights_are_not_loaded(name):
    model = sema.create_model("sema_micro", num_classes=3)
    with pytest.raises(sema.CheckpointError):
        sema.load_checkpoint(model, {f"{name}.{key}": value for key, value in model.state_dict().items()})

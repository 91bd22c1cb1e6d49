"""Measure the models of the main comparison with this suite's own probes."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "model", ["sema_tiny", "mila_tiny", "swin_tiny", "deit_small", "vminet_xs", "vmamba_tiny_s1l8"]
)
def test_model(sema_benchmark, model):
    record = sema_benchmark(model, res=224)
    assert record.value("throughput_images_per_s") > 0

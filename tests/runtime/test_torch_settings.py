"""Settings of torch whose reading or writing has a trap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.config

from xares_bench.runtime.settings import Setting
from xares_bench.runtime.torch_settings import has_default_device, torch_settings

SETTINGS = {setting.name: setting for setting in torch_settings()}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_writing_what_was_read_changes_nothing(setting: Setting) -> None:
    before = {name: other.read() for name, other in SETTINGS.items()}
    if before[setting.name] is not None:
        setting.write(before[setting.name])
    for name in SETTINGS:  # some follow others
        if before[name] is not None and SETTINGS[name].read() != before[name]:
            SETTINGS[name].write(before[name])
    assert {name: other.read() for name, other in SETTINGS.items()} == before


def test_an_open_block_of_autocast_keeps_no_weights() -> None:
    """It would keep the weights of the first step of a training in half precision."""
    depth = SETTINGS["entered blocks of autocast"]
    layer = torch.nn.Linear(2, 2)
    block: Any = torch.autocast("cpu")
    block.__enter__()
    assert depth.read() == 1
    SETTINGS["autocast on cpu"].write((False, torch.bfloat16))
    depth.write(0)
    assert depth.read() == 0
    found = []
    for value in (1.0, 2.0):
        torch.nn.init.constant_(layer.weight, value)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(float(layer(torch.ones(1, 2)).sum() - layer.bias.sum()))
    assert found == pytest.approx([4.0, 8.0], abs=0.1)


def test_settings_of_the_compiler_return_to_their_defaults() -> None:
    config: Any = torch._dynamo.config
    setting, before = SETTINGS["torch._dynamo.config"], config.recompile_limit
    assert setting.read() == {}
    config.recompile_limit = 77
    assert setting.read() == {"recompile_limit": 77}
    setting.write({})
    assert (setting.read(), config.recompile_limit) == ({}, before)


def test_a_default_device_is_told_from_none() -> None:
    assert not has_default_device()
    torch.set_default_device("cpu")
    try:
        assert has_default_device()
        assert SETTINGS["default device"].read() == "cpu"
    finally:
        torch.set_default_device(None)
    assert SETTINGS["default device"].read() == "unset"

"""`mxort export --to compressed-tensors`, decompressed by the format's own library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import checkpoints
import mxort


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("fmt", ["quark", "quark-w4a4", "compressed-tensors"])
def test_the_library_reads_what_was_exported(fmt, architecture, tmp_path):
    tiny = checkpoints.make(tmp_path / "checkpoint", architecture, fmt)
    mxort.import_checkpoint(tiny.folder, tmp_path / "folder", library=False, table_format="float")
    mxort.export(tmp_path / "folder", tmp_path / "out", "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    for name, matrix in tiny.packed.items():
        np.testing.assert_array_equal(model.get_submodule(name).weight.detach().numpy(), matrix.values, name)
    expected = dict(tiny.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name

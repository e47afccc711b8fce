"""A folder of onnxruntime-genai in int4, as its builder writes it, converted once more and run by genai."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mxort

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ASK = """
import sys, onnxruntime_genai as og
model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=30, do_sample=False)
generator = og.Generator(model, parameters)
prompt = "<|im_start|>user\\nWhat is the capital of France?<|im_end|>\\n<|im_start|>assistant\\n"
generator.append_tokens(tokenizer.encode(prompt))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
"""


def test_an_int4_folder_of_genai(smollm2: Path, tmp_path: Path) -> None:
    left = mxort.convert_folder(smollm2 / "int4", tmp_path / "left")
    assert left.models[0].report is not None and not left.models[0].report.converted
    report = mxort.convert_folder(smollm2 / "int4", tmp_path / "out", requantize=True).models[0].report
    assert report is not None
    assert len(report.converted) == 152
    assert all("was 4-bit integers" in site.note for site in report.converted)
    done = subprocess.run([sys.executable, "-c", ASK, tmp_path / "out"], capture_output=True, text=True)
    assert "The capital of France is Paris" in done.stdout, done.stderr

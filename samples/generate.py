"""Prompt in, text out: greedy decoding of SmolLM2, or of your own decoder ONNX, as MXFP4.

Usage: python samples/generate.py "Why is the sky blue?" [--compare] [--model decoder.onnx] [--out mxfp4.onnx]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import jinja2
import numpy as np
import onnxruntime as ort
from decoder import Decoder
from models import ModelError, refuse_bad_target, smollm2
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

import mxort


def chat(folder: Path, prompt: str) -> str:
    """The prompt as a user's turn of the model's own chat template; itself where the model has none."""
    template = folder / "chat_template.jinja"
    if not template.is_file():
        return prompt
    turns = [{"role": "user", "content": prompt}]
    return str(jinja2.Template(template.read_text()).render(messages=turns, add_generation_prompt=True))


def generate(decoder: Decoder, tokenizer: Tokenizer, prompt: str, limit: int) -> str:
    """Print what the model says, as it says it, for at most `limit` tokens; returns a line of timings."""
    tokens = np.array(tokenizer.encode(prompt, add_special_tokens=False).ids, np.int64)
    stream = DecodeStream(skip_special_tokens=True)
    decoder.reset()
    started = time.perf_counter()
    token = int(decoder.step(tokens)[-1].argmax())
    prefill = time.perf_counter() - started
    said = 1
    while token not in decoder.ends and said < limit:
        print(stream.step(tokenizer, token) or "", end="", flush=True)
        token = int(decoder.step(np.array([token]))[-1].argmax())
        said += 1
    decode = time.perf_counter() - started - prefill
    print(stream.step(tokenizer, token) or "")
    rate = f"{(said - 1) / decode:.1f} tokens/s" if said > 1 else "no decoding"
    return f"prefill {len(tokens)} tokens in {prefill * 1000:.0f} ms, then {said - 1} tokens at {rate}"


def main() -> None:
    """Convert the model and answer the prompt."""
    parser = argparse.ArgumentParser(description="Greedy text generation with an MXFP4 model.")
    parser.add_argument("prompt")
    parser.add_argument("--model", type=Path, help="fp32 decoder ONNX, its tokenizer beside it (SmolLM2)")
    parser.add_argument("--out", type=Path, help="where to write the converted model (beside the fp32 one)")
    parser.add_argument("--compare", action="store_true", help="let the fp32 model answer first")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens to generate (64)")
    arguments = parser.parse_args()

    refuse_bad_target(arguments.out)
    source = arguments.model or smollm2() / "model.onnx"
    target = arguments.out or source.with_suffix(".mxfp4.onnx")
    mxort.convert(source, target)
    tokenizer = Tokenizer.from_file(str(source.with_name("tokenizer.json")))
    prompt = chat(source.parent, arguments.prompt)
    runs = [("MXFP4", target, mxort.InferenceSession)]
    if arguments.compare:
        runs.insert(0, ("fp32", source, ort.InferenceSession))
    for name, path, session in runs:
        print(f"--- {name}")
        print(generate(Decoder(session(path), source.parent), tokenizer, prompt, arguments.tokens))


if __name__ == "__main__":
    try:
        main()
    except (ModelError, mxort.MxortError, OSError) as error:
        sys.exit(f"error: {error}")

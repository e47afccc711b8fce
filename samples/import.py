"""A Hugging Face folder, MXFP4 or float, into one that onnxruntime-genai runs; then prompt in, text out.

Usage: python samples/import.py checkpoint/ folder/ [prompt]
"""

import sys
from pathlib import Path

import onnxruntime_genai as genai

import mxort


def main(checkpoint: Path, folder: Path, prompt: str = "Once upon a time") -> None:
    """Import `checkpoint` into `folder`, unless that was done before, and continue `prompt`."""
    if not folder.exists():
        report = mxort.import_checkpoint(checkpoint, folder)
        print(f"{len(report.kept)} weights kept, {len(report.quantized)} converted")
    model = genai.Model(str(folder))  # with the copy of the library in it: nothing to register
    tokenizer = genai.Tokenizer(model)
    parameters = genai.GeneratorParams(model)
    tokens = tokenizer.encode(prompt)
    parameters.set_search_options(max_length=len(tokens) + 32)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    print(tokenizer.decode(generator.get_sequence(0)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

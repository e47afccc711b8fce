"""Chat with SmolLM2 in a browser: its conversion beside the fp32 model, with the tokens a second of both.

Usage: python samples/chat.py [--port 8000] [--cache build/models]

Where the output is no terminal, and nobody looks at a page, both models are measured behind the server instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from models import CACHE, ModelError, smollm2

import mxort
from mxort.evaluation.serve_bench import Load, bench_servers
from mxort.serve.server import serve

FILES = (
    *("genai_config.json", "model.onnx", "model.onnx.data"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)


def converted(source: Path) -> Path:
    """The folder beside ``source`` with its conversion, made where it is not there yet."""
    target = source.with_name("smollm2-mxfp4")
    if not target.exists():
        with tempfile.TemporaryDirectory() as folder:  # the model alone, without the other forms beside it
            for name in FILES:
                (Path(folder) / name).symlink_to(source.resolve() / name)
            mxort.convert_folder(folder, target)
    return target


def main() -> None:
    """Convert, then serve until Ctrl-C, or measure."""
    parser = argparse.ArgumentParser(description="A chat in a browser, MXFP4 beside fp32.")
    parser.add_argument("--port", type=int, default=8000, help="of this machine (default 8000)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where models are kept (build/models)")
    arguments = parser.parse_args()
    source = smollm2(arguments.cache)
    folders = [converted(source), source]
    if sys.stdout.isatty():
        print(f"A chat: http://127.0.0.1:{arguments.port} (Ctrl-C ends it)")
        serve(folders, port=arguments.port)
        return
    load = Load(shapes=((32, 32),), concurrency=(1,), requests_per_client=2)
    for point in bench_servers([str(folder) for folder in folders], load).points:
        print(f"{point.target}: {point.tokens_per_s:.1f} tokens/s behind the server, {point.errors} errors")
    print(f"In a browser: mxort serve {' '.join(map(str, folders))}")


if __name__ == "__main__":
    try:
        main()
    except (ModelError, mxort.MxortError) as error:
        sys.exit(f"error: {error}")

"""The command line: ``mxort convert | import | export | inspect | compare | ...``. Parsing and printing only.

Exit status: 0 done, 1 something is broken (or below --min-sqnr), 2 bad input (one line on stderr, nothing
written), 3 nothing in the model was converted (it is written as it was), 130 interrupted. Each command imports what it
needs, so that ``mxort --help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from keyword import iskeyword
from typing import Any, NoReturn

from mxort.cli import shared
from mxort.errors import MxortError

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except MxortError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("mxort: interrupted", file=sys.stderr)
        return shared.INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return shared.BROKEN


def _complain(message: str) -> int:
    print(f"mxort: error: {' '.join(message.split())}", file=sys.stderr)
    return shared.BAD_INPUT


class _Parser(argparse.ArgumentParser):
    """Reports errors on one line, and adds its arguments only when its command is the one that was typed."""

    module = ""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(message))

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        name, self.module = self.module, ""
        if name:
            command = import_module(name)
            command.add_arguments(self)
            self.set_defaults(command=command.run)
        return super().parse_known_args(*args, **kwargs)


def _parser() -> _Parser:
    parser = _Parser(
        prog="mxort", description="MXFP4 for ONNX Runtime: convert models, check them, time them."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, about in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.module = f"mxort.cli.{name}{'_' * iskeyword(name)}"
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from importlib import metadata

        try:
            print(f"mxort {metadata.version('mxort')}")
        except metadata.PackageNotFoundError:
            print("mxort (not installed)")
        sys.exit(0)


COMMANDS = {
    "convert": "convert the MatMul weights of a model to MXFP4",
    "import": "make a folder that onnxruntime-genai runs of a Hugging Face folder or a GGUF, its MXFP4 weights kept",
    "export": "write what was imported or converted in the format of others: compressed-tensors, Quark, standard ONNX",
    "inspect": "show what a model holds: converted nodes, or those that can be",
    "compare": "run a model and its conversion and measure the difference",
    "eval": "measure a conversion on data: perplexity, KL, agreement",
    "sensitivity": "rank layers by what quantising each alone costs",
    "bench": "time models in turns, or a server under load",
    "serve": "serve folders of models by OpenAI's HTTP interface",
    "doctor": "check this machine and the installation",
}
"""Command -> what it does. Each is a module of this package, imported when its command was typed."""

"""Reads AMD GPU code objects: instructions, main loop and resources of each kernel. Needs LLVM's tools, no GPU."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mxort.errors import MxortError


def find_tool(name: str) -> str:
    """Path of an LLVM tool ("llvm-objdump", ...): ROCm's, else a versioned one, else a plain one on PATH."""
    rocm = Path(os.environ.get("ROCM_PATH", "/opt/rocm")) / "llvm" / "bin" / name
    for candidate in (str(rocm), f"{name}-22", name):
        found = shutil.which(candidate)
        if found:
            return found
    raise MxortError(f"{name}: not found (looked for {rocm}, {name}-22, {name}): install llvm-22")


def run_tool(name: str, *args: str, text: str | None = None, seconds: float | None = None) -> str:
    """Output of an LLVM tool; MxortError with its message when it is missing, fails or takes more than ``seconds``."""
    command = [find_tool(name), *args]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise MxortError(f"{name} {' '.join(args)}: no answer within {seconds} seconds") from error
    if done.returncode:
        raise MxortError(f"{name} {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Instruction:
    """One disassembled instruction: byte address, text, and the address it branches to."""

    address: int
    text: str
    target: int | None = None

    @functools.cached_property
    def mnemonic(self) -> str:
        return re.sub(r"_(e32|e64|dpp|sdwa)$", "", self.text.split(maxsplit=1)[0])

    @functools.cached_property
    def operands(self) -> list[str]:
        rest = self.text.split(maxsplit=1)
        fields = [f.strip() for f in rest[1].split(",")] if len(rest) > 1 else []
        return [f.split()[0] for f in fields if f]

    @functools.cached_property
    def has_destination(self) -> bool:
        """Whether the first operand is a register that is written (stores and scalar compares write none)."""
        if re.match(
            r"(buffer|global|flat|scratch)_store|ds_write|s_cmp|s_bitcmp|s_waitcnt|s_barrier|s_c?branch",
            self.mnemonic,
        ):
            return False
        return not (self.is_lds_load)

    @property
    def is_lds_load(self) -> bool:
        """A direct-to-LDS load: it has an address, not a destination."""
        return bool(re.match(r"(buffer|global)_load", self.mnemonic)) and " lds" in f" {self.text} ".replace(
            "\t", " "
        )

    def reads(self, registers: frozenset[str]) -> bool:
        sources = self.operands[1:] if self.has_destination else self.operands
        return any(registers & registers_of(s) for s in sources)

    def modifier(self, name: str) -> int:
        """Value of ``name:value``, 0 where it is not written."""
        found = re.search(rf"\b{name}:(\d+)", self.text)
        return int(found[1]) if found else 0


@functools.cache
def registers_of(operand: str) -> frozenset[str]:
    """Vector registers named by an operand: "v[2:3]" -> {"v2", "v3"}."""
    found = re.fullmatch(r"-?\|?([va])(?:(\d+)|\[(\d+):(\d+)\])\|?", operand)
    if not found:
        return frozenset()
    first = int(found[2] or found[3])
    last = int(found[2] or found[4])
    return frozenset(f"{found[1]}{n}" for n in range(first, last + 1))


@dataclass(frozen=True)
class Resources:
    """What the code object's metadata says about a kernel."""

    name: str
    vgprs: int  # accumulation registers included
    agprs: int
    sgprs: int
    lds: int
    scratch: int
    vgpr_spills: int
    sgpr_spills: int
    threads: int


@dataclass(frozen=True)
class Kernel:
    arch: str
    resources: Resources
    code: list[Instruction]
    loop: list[Instruction]  # the main loop: the one with most matrix instructions; empty where there is none

    @property
    def loop_bytes(self) -> int:
        return self.loop[-1].address - self.loop[0].address + 4 if self.loop else 0


def parse_disassembly(text: str, functions: Collection[str] | None = None) -> dict[str, list[Instruction]]:
    """llvm-objdump -d output -> instructions by function. Symbols not in ``functions`` are labels inside one
    (hand-written assembly has them); without it every symbol is a function."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        symbol = re.match(r"^[0-9a-f]+ <(.+)>:", line)
        if symbol:
            if functions is None or symbol[1] in functions:
                current = kernels.setdefault(symbol[1], [])
            continue
        found = re.match(r"^\s+(\S.*?)\s*//\s*([0-9A-F]+):(.*)", line)
        if found and current is not None:
            target = None
            if "branch" in found[1]:  # a signed count of words, in the low half of the encoding
                distance = int(found[3].split()[0], 16) & 0xFFFF
                target = int(found[2], 16) + 4 + 4 * (distance - 0x10000 if distance & 0x8000 else distance)
            current.append(Instruction(int(found[2], 16), found[1].strip(), target))
    return kernels


def find_blocks(code: list[Instruction]) -> tuple[list[int], list[list[int]]]:
    """Basic blocks: the first instruction of each, and the blocks that lead to it."""
    index = {i.address: n for n, i in enumerate(code)}
    branches = {n: index[i.target] for n, i in enumerate(code) if i.target in index}
    ends = {n for n, i in enumerate(code) if i.mnemonic in ("s_branch", "s_endpgm", "s_setpc_b64")}
    starts = sorted({0, *branches.values(), *(n + 1 for n in [*branches, *ends])} - {len(code)})
    block = {first: n for n, first in enumerate(starts)}
    before: list[list[int]] = [[] for _ in starts]
    for n, after in enumerate([*starts[1:], len(code)]):
        if after - 1 in branches:
            before[block[branches[after - 1]]].append(n)
        if after - 1 not in ends and after < len(code):
            before[n + 1].append(n)
    return starts, before


def find_dominators(before: list[list[int]]) -> list[int]:
    """The blocks that every way to a block comes through, as bits; of what nothing leads to, all."""
    every = (1 << len(before)) - 1
    dominators = [1, *[every] * (len(before) - 1)]
    changed = True
    while changed:
        changed = False
        for n in range(1, len(before)):
            of_all = every
            for m in before[n]:
                of_all &= dominators[m]
            of_all |= 1 << n
            changed |= dominators[n] != of_all
            dominators[n] = of_all
    return dominators


def find_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The loops' bodies, as far as they stand together: not the blocks, seldom run, that compilers put elsewhere."""
    starts, before = find_blocks(code)
    dominators = find_dominators(before)
    loops = []
    for head in range(len(starts)):
        body, new = {head}, [n for n in before[head] if dominators[n] >> head & 1]
        if not new:
            continue
        while new:
            n = new.pop()
            if n not in body:
                body.add(n)
                new += before[n]
        first = last = head
        while first - 1 in body:
            first -= 1
        while last + 1 in body:
            last += 1
        loops.append(code[starts[first] : [*starts, len(code)][last + 1]])
    return loops


def find_main_loop(code: list[Instruction]) -> list[Instruction]:
    """The loop with most matrix instructions; of equals the shortest. Empty where no loop has any."""
    counts = [
        (sum(i.mnemonic.startswith("v_mfma") for i in loop), -len(loop), loop) for loop in find_loops(code)
    ]
    count, _, loop = max(counts, key=lambda c: c[:2], default=(0, 0, []))
    return loop if count else []


def parse_metadata(text: str) -> dict[str, Resources]:
    """llvm-readelf --notes output -> resources by kernel name."""
    out = {}
    for entry in re.split(r"\n  - (?=\.agpr_count|\.args|\.group_segment|\.name)", text)[1:]:
        fields = {
            m[1]: m[2].strip("'\"") for m in re.finditer(r"^ {2,4}\.(\w+): +(\S+)$", "    " + entry, re.M)
        }

        def number(key: str, fields: dict[str, str] = fields) -> int:
            return int(fields.get(key, "0"))

        if "symbol" not in fields:
            continue
        name = fields["symbol"].removesuffix(".kd")
        out[name] = Resources(
            name, number("vgpr_count"), number("agpr_count"), number("sgpr_count"), number("group_segment_fixed_size"),
            number("private_segment_fixed_size"), number("vgpr_spill_count"), number("sgpr_spill_count"),
            number("max_flat_workgroup_size"),
        )  # fmt: skip
    return out


def read_code_object(path: str | Path) -> list[Kernel]:
    """Kernels of a code object, in the order of its code."""
    notes = run_tool("llvm-readelf", "--notes", str(path))
    target = re.search(r"amdhsa\.target:\s+\S*--(gfx\w+)", notes)
    resources = parse_metadata(notes)
    code = parse_disassembly(run_tool("llvm-objdump", "-d", str(path)), resources)
    arch = target[1] if target else "gfx950"
    return [Kernel(arch, resources[k], c, find_main_loop(c)) for k, c in code.items() if k in resources]

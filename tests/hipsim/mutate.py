"""Broken copies of a code object, to show that tests can fail.

    co = mutate.CodeObject(path)
    for m in co.mutations("gemm"):    # of the kernel's main loop; kinds=... and whole=True choose others
        run(m.image)                  # bytes of the changed code object: expect a SimFault or a wrong result
        m.kind, m.name, m.instruction        # "drop_wait", "drop_wait @0x1a40 s_waitcnt vmcnt(4)", ...

Every mutation changes one instruction in place. `mutate.py file.co [kernel]` lists the main loop.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hipsim import harness

S_NOP = 0xBF800000

KINDS = (
    "drop_wait",
    "relax_vmcnt",
    "relax_lgkmcnt",
    "drop_barrier",
    "opsel_a",
    "opsel_b",
    "lds_offset",
    "buffer_offset",
    "swap_ab",
)


@dataclass(frozen=True)
class Instruction:
    address: int  # virtual address in the code object, as in the simulator's pc + start of .text
    text: str
    words: tuple[int, ...]

    @property
    def mnemonic(self) -> str:
        return self.text.split()[0]

    @property
    def target(self) -> int | None:
        """Address that a branch goes to."""
        if not re.match(r"s_(c?branch)", self.text):
            return None
        distance = self.words[0] & 0xFFFF
        return self.address + 4 + 4 * (distance - 0x10000 if distance & 0x8000 else distance)


@dataclass(frozen=True)
class Mutation:
    kind: str
    instruction: Instruction
    words: tuple[int, ...]
    image: bytes

    @property
    def name(self) -> str:
        return f"{self.kind} @0x{self.instruction.address:x} {self.instruction.text}"


def _wait_counts(word: int) -> tuple[int, int]:
    return (word & 15) | (word >> 14 & 3) << 4, word >> 8 & 15


def _wait_word(vmcnt: int, lgkmcnt: int) -> int:
    return 0xBF8C0070 | (vmcnt & 15) | (vmcnt >> 4) << 14 | lgkmcnt << 8


def changed_words(  # noqa: C901  (one case per kind)
    kind: str, i: Instruction
) -> tuple[int, ...] | None:
    """The instruction's encoding after the mutation, or None where it does not apply."""
    w, name = list(i.words), i.mnemonic
    if name == "s_waitcnt":
        vm, lgkm = _wait_counts(w[0])
        if kind == "drop_wait":
            return (S_NOP,)
        if kind == "relax_vmcnt" and vm < 63:
            return (_wait_word(vm + 1, lgkm),)
        if kind == "relax_lgkmcnt" and lgkm < 15:
            return (_wait_word(vm, lgkm + 1),)
    elif name == "s_barrier" and kind == "drop_barrier":
        return (S_NOP,)
    elif name.startswith("v_mfma_scale"):
        # dwords 0-1 are the scale half: op_sel in bits 12:11 of the first, op_sel_hi in 28:27 of the second
        if kind == "opsel_a":
            w[0] ^= 1 << 11
        elif kind == "opsel_b":
            w[0] ^= 1 << 12
        elif kind == "swap_ab":
            src0, src1 = w[3] & 0x1FF, w[3] >> 9 & 0x1FF
            w[3] = (w[3] & ~0x3FFFF) | src1 | src0 << 9
        else:
            return None
        return None if tuple(w) == i.words else tuple(w)
    elif name.startswith(("ds_read", "ds_write")) and kind == "lds_offset":
        two = "read2" in name or "write2" in name
        w[0] ^= 1 if two else 16
        return tuple(w)
    elif name.startswith("buffer_load") and kind == "buffer_offset":
        w[0] ^= 16
        return tuple(w)
    return None


class CodeObject:
    def __init__(self, source: Path | str | bytes):
        self.image = source if isinstance(source, bytes) else Path(source).read_bytes()
        (self._section_offset,) = struct.unpack_from("<Q", self.image, 0x28)
        self._section_count = struct.unpack_from("<H", self.image, 0x3C)[0]

    def file_offset(self, address: int) -> int:
        for k in range(self._section_count):
            base = self._section_offset + 64 * k
            kind, flags, start, offset, size = struct.unpack_from("<IQQQQ", self.image, base + 4)
            if kind == 1 and flags & 4 and start <= address < start + size:  # PROGBITS, executable
                return int(offset + address - start)
        raise ValueError(f"no code at 0x{address:x}")

    @cached_property
    def functions(self) -> dict[str, list[Instruction]]:
        """Instructions of each function symbol, in order."""
        with tempfile.NamedTemporaryFile(suffix=".co") as file:
            file.write(self.image)
            file.flush()
            command = [harness.find_tool("llvm-objdump"), "-d", file.name]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        out: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in listing.splitlines():
            if m := re.match(r"[0-9a-f]+ <(.+)>:", line):
                if not m[1].startswith((".L", "BB")):
                    current = out.setdefault(m[1], [])
            elif m := re.match(r"\s+(\S.*?)\s*// ([0-9A-F]{12}): ([0-9A-F ]+)", line):
                current.append(Instruction(int(m[2], 16), m[1], tuple(int(w, 16) for w in m[3].split())))
        return out

    def loops(self, kernel: str) -> list[list[Instruction]]:
        """Innermost loops: from the target of a backward branch to the branch."""
        code = self.functions[kernel]
        ranges = {(i.target, i.address) for i in code if i.target is not None and i.target <= i.address}
        inner = [
            (a, b) for a, b in ranges if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ranges)
        ]
        return [[i for i in code if a <= i.address <= b] for a, b in sorted(inner)]

    def main_loop(self, kernel: str) -> list[Instruction]:
        """The innermost loop with the most matrix instructions; the longest one if there are none."""

        def weight(loop: list[Instruction]) -> tuple[int, int]:
            return sum(i.mnemonic.startswith("v_mfma") for i in loop), len(loop)

        return max(self.loops(kernel), key=weight, default=[])

    def mutate(self, i: Instruction, words: tuple[int, ...]) -> bytes:
        """The image with the encoding of one instruction replaced (same length)."""
        if len(words) != len(i.words):
            raise ValueError("a mutation keeps the length of its instruction")
        at = self.file_offset(i.address)
        return self.image[:at] + struct.pack(f"<{len(words)}I", *words) + self.image[at + 4 * len(words) :]

    def mutations(
        self,
        kernel: str,
        kinds: Iterable[str] = KINDS,
        whole: bool = False,
        instructions: Iterable[Instruction] | None = None,
    ) -> Iterator[Mutation]:
        """A Mutation per applicable (kind, instruction) of the main loop, ``whole`` kernel, or given list."""
        wanted = list(kinds)
        if unknown := set(wanted) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}; known: {', '.join(KINDS)}")
        code = (
            instructions
            if instructions is not None
            else self.functions[kernel]
            if whole
            else self.main_loop(kernel)
        )
        for i in code:
            for kind in wanted:
                words = changed_words(kind, i)
                if words is not None:
                    yield Mutation(kind, i, words, self.mutate(i, words))


def main(path: str, kernel: str | None = None) -> None:
    co = CodeObject(path)
    for name in [kernel] if kernel else [n for n, code in co.functions.items() if len(code) > 1]:
        loop = co.main_loop(name)
        print(f"{name}: main loop of {len(loop)} instructions")
        for i in loop:
            applicable = [k for k in KINDS if changed_words(k, i)]
            print(f"  0x{i.address:x}  {i.text:60s} {' '.join(applicable)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Families of opcodes, every member: comparisons, and memory accesses by form and width."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import pytest

from hipsim import harness
from hipsim.snippet import run_lanes

rng = np.random.default_rng(17)
LANE = np.arange(64, dtype=np.uint32)
DATA = rng.integers(0, 2**32, (4, 64), dtype=np.uint32)
ORDER: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "lt": operator.lt,
    "eq": operator.eq,
    "le": operator.le,
    "gt": operator.gt,
    "ne": operator.ne,
    "ge": operator.ge,
}
FLOAT_ORDER: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    **{k: v for k, v in ORDER.items() if k != "ne"},
    "lg": lambda a, b: (a < b) | (a > b),
    "neq": operator.ne,
    "nlt": lambda a, b: ~(a < b),
    "nle": lambda a, b: ~(a <= b),
    "ngt": lambda a, b: ~(a > b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
}
TYPES: dict[str, type] = {
    "u32": np.uint32,
    "i32": np.int32,
    "u16": np.uint16,
    "i16": np.int16,
    "u64": np.uint64,
    "i64": np.int64,
    "f32": np.float32,
    "f16": np.float16,
    "f64": np.float64,
}


def values(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    if np.issubdtype(dtype, np.floating):
        pool = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2.5], dtype)
    else:
        info = np.iinfo(dtype)
        pool = np.array([0, 1, 2, info.max, info.min, info.max - 1, 5, 7], dtype)
    return np.repeat(pool, 8), np.tile(pool, 8)


def dwords(x: np.ndarray) -> list[np.ndarray]:
    raw = x.view(np.uint8).reshape(64, -1)
    padded = np.zeros((64, -(-raw.shape[1] // 4) * 4), np.uint8)
    padded[:, : raw.shape[1]] = raw
    return list(padded.view(np.uint32).T)


@pytest.mark.parametrize("kind", TYPES)
def test_comparisons(sim: harness.Sim, kind: str) -> None:
    """v_cmp into VCC or a pair, and v_cmpx, which narrows EXEC, for all conditions of a type."""
    a, b = values(TYPES[kind])
    wide = kind.endswith("64")
    x, y = ("v[10:11]", "v[12:13]") if wide else ("v10", "v11")
    conditions = FLOAT_ORDER if kind.startswith("f") else ORDER
    cmpx = kind not in ("f16", "f64")
    code, outputs = "v_mov_b32 v20, 1\n", []
    for n, name in enumerate(conditions):
        code += f"v_cmp_{name}_{kind} s[20:21], {x}, {y}\nv_cndmask_b32 v{100 + n}, 0, v20, s[20:21]\n"
        outputs.append(f"v{100 + n}")
        if cmpx:
            code += f"v_mov_b32 v{140 + n}, 0\nv_cmpx_{name}_{kind} vcc, {x}, {y}\nv_mov_b32 v{140 + n}, 1\n"
            code += "s_mov_b64 exec, -1\n"
            outputs.append(f"v{140 + n}")
    got = iter(run_lanes(sim, code, [*dwords(a), *dwords(b)], outputs))
    for name, f in conditions.items():
        with np.errstate(invalid="ignore"):
            want = f(a, b)
        np.testing.assert_array_equal(next(got).astype(bool), want, err_msg=name)
        if cmpx:
            np.testing.assert_array_equal(next(got).astype(bool), want, err_msg=f"cmpx {name}")


# name -> (bytes, signed, half of the register or None)
LOADS = {
    "ubyte": (1, False, None),
    "sbyte": (1, True, None),
    "ushort": (2, False, None),
    "sshort": (2, True, None),
    "dword": (4, False, None),
    "dwordx2": (8, False, None),
    "dwordx3": (12, False, None),
    "dwordx4": (16, False, None),
    "ubyte_d16": (1, False, 0),
    "ubyte_d16_hi": (1, False, 1),
    "sbyte_d16": (1, True, 0),
    "sbyte_d16_hi": (1, True, 1),
    "short_d16": (2, False, 0),
    "short_d16_hi": (2, False, 1),
}
STORES = {
    "byte": 1,
    "short": 2,
    "dword": 4,
    "dwordx2": 8,
    "dwordx3": 12,
    "dwordx4": 16,
    "byte_d16_hi": 1,
    "short_d16_hi": 2,
}
SETUP = """
v_lshlrev_b32 v20, 4, v0
v_mov_b32 v21, 0
v_lshl_add_u64 v[22:23], s[4:5], 0, v[20:21]
v_lshl_add_u64 v[24:25], s[6:7], 0, v[20:21]
s_mov_b32 s20, {base}
s_and_b32 s21, {high}, 0xffff
s_mov_b32 s22, 0x400
s_mov_b32 s23, 0x00020000
"""


@pytest.mark.parametrize("form", ["global", "flat", "buffer"])
@pytest.mark.parametrize("name", LOADS)
def test_loads(sim: harness.Sim, form: str, name: str) -> None:
    size, signed, half = LOADS[name]
    n = -(-size // 4)
    d = "v100" if n == 1 else f"v[100:{99 + n}]"
    address = {"global": "v[22:23], off", "flat": "v[22:23]", "buffer": "v20, s[20:23], 0 offen"}[form]
    code = SETUP.format(base="s4", high="s5") + "v_mov_b32 v100, 0x5a5aa5a5\n"
    code += f"{form}_load_{name} {d}, {address}\ns_waitcnt vmcnt(0) lgkmcnt(0)"
    got = run_lanes(sim, code, DATA, [f"v{100 + k}" for k in range(n)])
    raw = DATA.reshape(-1).view(np.uint8).reshape(64, 16)[:, :size]
    if size >= 4:
        np.testing.assert_array_equal(np.ascontiguousarray(got.T).view(np.uint8), raw)
        return
    number = np.array([int.from_bytes(bytes(r), "little", signed=signed) for r in raw])
    want = number & 0xFFFFFFFF
    if half is not None:
        want = 0x5A5A0000 | (number & 0xFFFF) if half == 0 else 0xA5A5 | (number & 0xFFFF) << 16
    np.testing.assert_array_equal(got[0], want)


@pytest.mark.parametrize("form", ["global", "flat", "buffer"])
@pytest.mark.parametrize("name", STORES)
def test_stores(sim: harness.Sim, form: str, name: str) -> None:
    size, n = STORES[name], -(-STORES[name] // 4)
    s = "v10" if n == 1 else f"v[10:{9 + n}]"
    order = {
        "global": f"v[24:25], {s}, off",
        "flat": f"v[24:25], {s}",
        "buffer": f"{s}, v20, s[20:23], 0 offen",
    }[form]
    code = SETUP.format(base="s6", high="s7")
    code += "v_mov_b32 v30, -1\nv_mov_b32 v31, -1\nv_mov_b32 v32, -1\nv_mov_b32 v33, -1\n"
    code += "global_store_dwordx4 v20, v[30:33], s[6:7]\n"
    code += f"{form}_store_{name} {order}\ns_waitcnt vmcnt(0) lgkmcnt(0)\n"
    code += "global_load_dwordx4 v[100:103], v20, s[6:7]\ns_waitcnt vmcnt(0)"
    got = np.ascontiguousarray(run_lanes(sim, code, DATA, [f"v{100 + k}" for k in range(4)]).T).view(np.uint8)
    first = 2 if name.endswith("hi") else 0
    raw = np.ascontiguousarray(DATA.T).view(np.uint8)[:, first : first + size]
    np.testing.assert_array_equal(got[:, :size], raw)
    assert (got[:, size:] == 255).all()


def s32(x: int) -> int:
    return x - 2**32 if x >> 31 else x


ATOMICS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "swap": lambda a, b: b,
    "smin": lambda a, b: min(a, b, key=s32),
    "smax": lambda a, b: max(a, b, key=s32),
    "umin": min,
    "umax": max,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("form", ["global", "flat", "buffer"])
def test_atomics(sim: harness.Sim, form: str) -> None:
    """Each lane on its own place: old value returned, new value stored; compare-and-swap both ways."""
    code, outputs = SETUP.format(base="s6", high="s7"), []
    place = {
        "global": "v[24:25], {}, off sc0",
        "flat": "v[24:25], {} sc0",
        "buffer": "v20, s[20:23], 0 offen sc0",
    }[form]
    wait = "s_waitcnt vmcnt(0) lgkmcnt(0)\n"
    for n, name in enumerate([*ATOMICS, "cmpswap"]):
        old, new = f"v{100 + 2 * n}", f"v{101 + 2 * n}"
        code += f"global_store_dword v20, v10, s[6:7]\n{wait}"
        if name == "cmpswap":  # data, then the value to compare with: even lanes match
            code += "v_mov_b32 v40, v11\nv_and_b32 v41, 1, v0\nv_add_u32 v41, v10, v41\n"
            data, result = "v[40:41]", "v[42:43]" if form == "buffer" else "v42"
        else:
            data, result = "v11", "v42"
        if form == "buffer":  # the data register receives the old value
            code += (
                "v_mov_b32 v42, v11\nv_mov_b32 v43, v41\n" if name == "cmpswap" else "v_mov_b32 v42, v11\n"
            )
            code += f"buffer_atomic_{name} {result}, {place}\n"
        else:
            code += f"{form}_atomic_{name} {result}, {place.format(data)}\n"
        code += f"{wait}v_mov_b32 {old}, v42\nglobal_load_dword {new}, v20, s[6:7]\n{wait}"
        outputs += [old, new]
    got = run_lanes(sim, code, DATA, outputs)
    a, b = DATA[0], DATA[1]
    for n, name in enumerate([*ATOMICS, "cmpswap"]):
        np.testing.assert_array_equal(got[2 * n], a, err_msg=name)
        if name == "cmpswap":
            want = np.where(LANE % 2 == 0, b, a)
        else:
            want = np.array([ATOMICS[name](int(x), int(y)) & 0xFFFFFFFF for x, y in zip(a, b, strict=True)])
        np.testing.assert_array_equal(got[2 * n + 1], want, err_msg=name)

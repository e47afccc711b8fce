"""The HIP runtime as programs see it: devices, memory, streams, events, modules, launches, graphs, errors."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from hipsim import harness

ADD = """
extern "C" __attribute__((global)) void add(float* o, float x) {
  int first = __builtin_amdgcn_workgroup_id_x() * __builtin_amdgcn_workgroup_size_x();
  int t = first + __builtin_amdgcn_workitem_id_x();
  o[t] += x; }
extern "C" __attribute__((global)) void grid(int* o) {
  if (__builtin_amdgcn_workitem_id_x() || __builtin_amdgcn_workgroup_id_x()) return;
  o[0] = __builtin_amdgcn_grid_size_x();
  o[1] = __builtin_amdgcn_workgroup_size_y(); }
"""
PTR = ctypes.c_void_p


class Hip:
    """The entry points as a C program would call them."""

    def __init__(self, **options: int | str):
        self.sim = harness.Sim(**options)  # type: ignore[arg-type]
        self.lib = self.sim.lib

    def __getattr__(self, name: str):
        f = getattr(self.lib, name)

        def call(*args: object) -> int:
            return int(f(*(PTR(a) if isinstance(a, int) and a > 2**31 else a for a in args)))

        return call

    def new(self, name: str, *args: object) -> int:
        p = PTR()
        assert getattr(self, name)(ctypes.byref(p), *args) == 0, name
        return p.value or 0

    def load(self) -> tuple[int, int]:
        m = self.new("hipModuleLoadData", harness.compile_hip(ADD, flags=("-DX",)).read_bytes() + bytes(64))
        return m, self.new("hipModuleGetFunction", m, b"add")

    def launch(self, f: int, stream: int | None, o: int, x: float, grid: int = 1) -> int:
        pointer, value = PTR(o), ctypes.c_float(x)
        params = (PTR * 2)(ctypes.addressof(pointer), ctypes.addressof(value))
        return int(self.lib.hipModuleLaunchKernel(PTR(f), grid, 1, 1, 64, 1, 1, 0, PTR(stream), params, None))


def host(a: np.ndarray) -> int:
    return a.ctypes.data


def test_kernel_parameters_and_hidden_arguments() -> None:
    hip = Hip()
    o = hip.sim.to_device(np.zeros(128, np.float32))
    m, f = hip.load()
    assert hip.launch(f, None, o.ptr, 2.5, grid=2) == 0
    assert (o.numpy() == 2.5).all()
    module = harness.Module(m, ["grid"])
    out = hip.sim.empty(2, np.int32)
    module.launch("grid", (3, 2), (16, 4), [out])
    assert out.numpy().tolist() == [48, 4]


def test_work_runs_only_when_something_waits() -> None:
    """A program that forgets to synchronise sees stale data, every time."""
    hip = Hip()
    o = hip.sim.to_device(np.zeros(64, np.float32))
    pinned = hip.new("hipHostMalloc", 256, 0)
    view = np.ctypeslib.as_array(ctypes.cast(pinned, ctypes.POINTER(ctypes.c_float)), (64,))
    view[:] = -1
    stream = hip.new("hipStreamCreateWithFlags", 1)
    _, f = hip.load()
    hip.launch(f, stream, o.ptr, 1.0)
    assert hip.hipMemcpyAsync(pinned, o.ptr, 256, 2, stream) == 0
    assert (view == -1).all()
    assert hip.hipStreamQuery(stream) == 600
    assert hip.hipStreamSynchronize(stream) == 0
    assert (view == 1).all()
    assert hip.hipStreamQuery(stream) == 0
    assert hip.hipStreamDestroy(stream) == 0
    assert hip.hipHostFree(pinned) == 0


def test_pinned_source_is_read_late_and_pageable_source_at_once() -> None:
    hip = Hip()
    stream = hip.new("hipStreamCreate")
    d = hip.sim.empty(8, np.int32)
    pinned = hip.new("hipHostMalloc", 32, 0)
    view = np.ctypeslib.as_array(ctypes.cast(pinned, ctypes.POINTER(ctypes.c_int)), (8,))
    view[:] = 1
    hip.hipMemcpyAsync(d.ptr, pinned, 32, 1, stream)
    view[:] = 2
    hip.hipStreamSynchronize(stream)
    assert (d.numpy() == 2).all()
    pageable = np.full(8, 3, np.int32)
    hip.hipMemcpyAsync(d.ptr, host(pageable), 32, 1, stream)
    pageable[:] = 4
    hip.hipStreamSynchronize(stream)
    assert (d.numpy() == 3).all()


def test_events_order_streams() -> None:
    hip = Hip()
    o = hip.sim.to_device(np.ones(64, np.float32))
    _, f = hip.load()
    a, b = hip.new("hipStreamCreateWithFlags", 1), hip.new("hipStreamCreateWithFlags", 1)
    event, later = hip.new("hipEventCreate"), hip.new("hipEventCreate")
    hip.launch(f, a, o.ptr, 10.0)
    hip.hipEventRecord(event, a)
    copy = hip.sim.empty(64)
    hip.hipStreamWaitEvent(b, event, 0)
    hip.hipMemcpyAsync(copy.ptr, o.ptr, 256, 3, b)
    hip.hipEventRecord(later, b)
    milliseconds = ctypes.c_float()
    assert hip.lib.hipEventElapsedTime(ctypes.byref(milliseconds), PTR(event), PTR(later)) == 600
    assert hip.hipStreamSynchronize(b) == 0
    assert (copy.numpy() == 11).all()
    assert hip.hipEventQuery(later) == 0
    assert hip.lib.hipEventElapsedTime(ctypes.byref(milliseconds), PTR(event), PTR(later)) == 0
    assert milliseconds.value > 0


def test_null_stream_waits_for_blocking_streams_only() -> None:
    hip = Hip()
    _, f = hip.load()
    for flags, expected in ((0, 6), (1, 1)):
        o = hip.sim.to_device(np.ones(64, np.float32))
        copy = hip.sim.empty(64)
        stream = hip.new("hipStreamCreateWithFlags", flags)
        hip.launch(f, stream, o.ptr, 5.0)
        assert hip.hipMemcpy(copy.ptr, o.ptr, 256, 3) == 0
        assert (copy.numpy() == expected).all()


def test_graph_capture() -> None:
    hip = Hip()
    o = hip.sim.to_device(np.zeros(64, np.float32))
    _, f = hip.load()
    stream = hip.new("hipStreamCreate")
    assert hip.hipStreamBeginCapture(stream, 0) == 0
    hip.launch(f, stream, o.ptr, 1.0)
    hip.launch(f, stream, o.ptr, 2.0)
    graph = PTR()
    assert hip.lib.hipStreamEndCapture(PTR(stream), ctypes.byref(graph)) == 0
    execution = PTR()
    assert hip.lib.hipGraphInstantiate(ctypes.byref(execution), graph, None, None, 0) == 0
    for _ in range(3):
        assert hip.lib.hipGraphLaunch(execution, PTR(stream)) == 0
    assert hip.hipStreamSynchronize(stream) == 0
    assert (o.numpy() == 9).all()
    assert hip.lib.hipGraphExecDestroy(execution) == hip.lib.hipGraphDestroy(graph) == 0
    assert hip.sim.counters()["graphs"] == 0


# What another thread may call meanwhile, and what it gets: hipSuccess, or an error that ends the capture too.
DURING_A_CAPTURE = {
    "hipDeviceSynchronize": (lambda hip, o: hip.hipDeviceSynchronize(), 900),
    "hipMemcpy": (lambda hip, o: hip.hipMemcpy(o.ptr, host(np.zeros(64, np.float32)), 256, 1), 906),
    "hipMemset": (lambda hip, o: hip.hipMemset(o.ptr, 0, 256), 906),
    "hipModuleUnload": (lambda hip, o: hip.hipModuleUnload(hip.load()[0]), 900),
    "hipMemcpyAsync": (
        lambda hip, o: hip.hipMemcpyAsync(
            o.ptr, host(np.zeros(64, np.float32)), 256, 1, hip.new("hipStreamCreateWithFlags", 1)
        ),
        0,
    ),
    "hipStreamSynchronize": (
        lambda hip, o: hip.hipStreamSynchronize(hip.new("hipStreamCreateWithFlags", 1)),
        0,
    ),
    "hipMalloc": (lambda hip, o: 0 * hip.new("hipMalloc", 256), 0),
    "hipFree": (lambda hip, o: hip.hipFree(hip.new("hipMalloc", 256)), 0),
}


@pytest.mark.parametrize("name", DURING_A_CAPTURE)
@pytest.mark.parametrize("device", [0, 1])
def test_capture_and_calls_of_other_threads(name: str, device: int) -> None:
    """As measured on ROCm 7 (rocm-systems issue 11698), captures of another device survive (its PR 8338)."""
    hip = Hip(devices="gfx950:2")
    call, error = DURING_A_CAPTURE[name]
    assert hip.hipSetDevice(device) == 0
    o = hip.sim.to_device(np.zeros(64, np.float32))
    assert hip.hipSetDevice(0) == 0
    mine = hip.sim.to_device(np.zeros(64, np.float32))
    _, f = hip.load()
    stream = hip.new("hipStreamCreateWithFlags", 1)
    assert hip.hipStreamBeginCapture(stream, 2) == 0
    assert hip.launch(f, stream, mine.ptr, 1.0) == 0
    results: list[int] = []
    lost = error if device == 0 else 0

    def other() -> None:
        results.append(hip.hipSetDevice(device))
        results.append(call(hip, o))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert results == [0, lost]
    status, graph = ctypes.c_int(), PTR()
    assert hip.lib.hipStreamIsCapturing(PTR(stream), ctypes.byref(status)) == 0
    assert status.value == (2 if lost else 1)
    assert hip.launch(f, stream, mine.ptr, 1.0) == (901 if lost else 0)
    assert hip.lib.hipStreamEndCapture(PTR(stream), ctypes.byref(graph)) == (901 if lost else 0)
    assert bool(graph.value) == (not lost)
    # The stream is an ordinary one again.
    assert hip.launch(f, stream, mine.ptr, 1.0) == hip.hipStreamSynchronize(stream) == 0
    assert (mine.numpy() == 1).all()


def test_capture_does_not_survive_a_wait_for_its_stream() -> None:
    hip = Hip()
    stream = hip.new("hipStreamCreateWithFlags", 1)
    assert hip.hipStreamBeginCapture(stream, 2) == 0
    assert hip.hipStreamSynchronize(stream) == 900
    assert hip.lib.hipStreamEndCapture(PTR(stream), ctypes.byref(PTR())) == 901


def test_argument_buffer_shorter_than_the_segment() -> None:
    """HIP does not compare sizes; what the kernel then reads beyond it is unknown."""
    hip = Hip()
    module = harness.Module(hip.load()[0], [])
    o = hip.sim.to_device(np.zeros(64, np.float32))
    module.launch("add", (1,), (64,), [o, np.float32(2)])  # 12 bytes of a segment of 272
    assert (o.numpy() == 2).all()
    with pytest.raises(harness.SimFault, match="nobody wrote"):
        module.launch("add", (1,), (64,), [o])


def test_devices() -> None:
    hip = Hip(devices="gfx950,gfx942:2")
    n = ctypes.c_int()
    assert hip.lib.hipGetDeviceCount(ctypes.byref(n)) == 0
    assert n.value == 3
    expected = [(b"gfx950:", 163840, 256), (b"gfx942:", 65536, 304), (b"gfx942:", 65536, 304)]
    for d, (arch, lds, units) in enumerate(expected):
        raw = ctypes.create_string_buffer(1472 + 64)
        assert hip.lib.hipGetDevicePropertiesR0600(raw, d) == 0
        assert raw.raw[1160:].startswith(arch)  # gcnArchName
        assert int.from_bytes(raw.raw[296:304], "little") == lds  # sharedMemPerBlock
        assert int.from_bytes(raw.raw[308:312], "little") == 64  # warpSize
        assert int.from_bytes(raw.raw[388:392], "little") == units  # multiProcessorCount
        assert raw.raw[1472:] == bytes(64), "the struct has 1472 bytes"
        for attribute, value in ((63, units), (87, 64), (74, lds), (23, 9)):
            assert hip.lib.hipDeviceGetAttribute(ctypes.byref(n), attribute, d) == 0
            assert n.value == value
        name = ctypes.create_string_buffer(32)
        assert hip.lib.hipDeviceGetPCIBusId(name, 32, d) == 0
        assert hip.lib.hipDeviceGetByPCIBusId(ctypes.byref(n), name.value) == 0
        assert n.value == d
    assert hip.lib.hipSetDevice(3) == 101
    assert hip.lib.hipGetLastError() == 101
    assert hip.lib.hipGetLastError() == 0
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    a = hip.sim.empty(1 << 20, np.uint8)
    assert hip.lib.hipMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
    assert total.value - free.value == a.nbytes


def test_code_object_for_another_device_is_refused() -> None:
    sim = harness.Sim(devices="gfx942")
    with pytest.raises(harness.SimFault) as caught:
        sim.load(harness.compile_hip(ADD, "gfx950"))
    assert caught.value.code == 209
    assert sim.load(harness.compile_hip(ADD, "gfx942")).kernels == ["add", "grid"]
    with pytest.raises(harness.SimFault) as caught:
        sim.load(b"no code object" * 10)
    assert caught.value.code == 200


def test_modules_of_the_same_text_are_independent() -> None:
    """They share the decoded instructions, and nothing that a load places or an unload frees."""
    hip = Hip()
    (first, _), (second, f) = hip.load(), hip.load()
    assert hip.hipModuleUnload(first) == 0
    o = hip.sim.to_device(np.zeros(64, np.float32))
    assert hip.launch(f, None, o.ptr, 2.0) == 0
    assert hip.lib.hipDeviceSynchronize() == 0
    assert (o.numpy() == 2).all()
    assert hip.hipModuleUnload(second) == 0
    assert hip.sim.counters()["modules"] == 0


def test_peer_access() -> None:
    hip = Hip(devices="gfx950:2")
    other = hip.sim.to_device(np.zeros(64, np.float32))
    hip.lib.hipSetDevice(1)
    _, f = hip.load()
    mine = hip.sim.to_device(np.ones(64, np.float32))
    assert hip.hipMemcpyPeer(other.ptr, 0, mine.ptr, 1, 256) == 0
    assert hip.lib.hipDeviceEnablePeerAccess(0, 0) == 0
    assert hip.lib.hipDeviceEnablePeerAccess(0, 0) == 704
    hip.launch(f, None, other.ptr, 1.0)
    assert hip.lib.hipDeviceSynchronize() == 0
    assert hip.lib.hipDeviceDisablePeerAccess(0) == 0
    hip.launch(f, None, other.ptr, 1.0)
    assert hip.lib.hipDeviceSynchronize() == 700
    hip.lib.hipSetDevice(0)
    assert (other.numpy() == 2).all()


def test_leak_counters() -> None:
    hip = Hip()
    m, _ = hip.load()
    a, s, e = hip.sim.empty(4), hip.new("hipStreamCreate"), hip.new("hipEventCreate")
    alive = ("allocations", "modules", "streams", "events")
    assert [hip.sim.counters()[k] for k in alive] == [1, 1, 1, 1]
    a.free()
    assert [hip.hipModuleUnload(m), hip.hipStreamDestroy(s), hip.hipEventDestroy(e)] == [0, 0, 0]
    assert [hip.sim.counters()[k] for k in alive] == [0, 0, 0, 0]
    assert hip.hipModuleUnload(m) == hip.hipStreamDestroy(s) == hip.hipEventDestroy(e) == 400
    assert hip.hipFree(a.ptr) == 1


def test_injected_failures() -> None:
    hip = Hip()
    hip.sim.fail("hipMalloc", call=2, error=2)
    p = PTR()
    assert [hip.lib.hipMalloc(ctypes.byref(p), 16) for _ in range(3)] == [0, 2, 0]
    hip.sim.fail("hipModuleLaunchKernel", error=719)
    o = hip.sim.to_device(np.zeros(64, np.float32))
    _, f = hip.load()
    assert hip.launch(f, None, o.ptr, 1.0) == 719
    assert hip.launch(f, None, o.ptr, 1.0) == 0
    calls = hip.sim.calls()
    assert (calls["hipMalloc"], calls["hipModuleLaunchKernel"]) == (4, 2)  # to_device has one of the four
    hip.sim.lose_device()
    assert hip.lib.hipDeviceSynchronize() == 100
    assert hip.lib.hipMalloc(ctypes.byref(p), 16) == 100


def test_out_of_memory() -> None:
    hip = Hip(memory=1 << 20)
    p = PTR()
    assert hip.lib.hipMalloc(ctypes.byref(p), (1 << 20) + 1) == 2
    assert not p.value
    assert hip.lib.hipMalloc(ctypes.byref(p), 1 << 20) == 0


def test_launch_limits() -> None:
    hip = Hip()
    m, _ = hip.load()
    module = harness.Module(m, [])
    o = hip.sim.to_device(np.zeros(64, np.float32))
    for grid, block, shared in (
        ((0,), (64,), 0),
        ((1,), (2048,), 0),
        ((1,), (64,), 163841),
        ((1 << 31,), (64,), 0),
    ):
        with pytest.raises(harness.SimFault) as caught:
            module.launch("add", grid, block, [o, np.float32(1)], shared=shared)
        assert caught.value.code == 9
    with pytest.raises(harness.SimFault) as caught:
        module.launch("absent", (1,), (64,), [])
    assert caught.value.code == 500


def test_copies_are_checked() -> None:
    hip = Hip()
    d = hip.sim.to_device(np.zeros(4, np.int32))
    h = np.zeros(8, np.int32)
    assert hip.hipMemcpy(host(h), d.ptr, 32, 2) == 1, "beyond the allocation"
    assert hip.hipMemcpy(host(h), d.ptr, 16, 1) == 1, "wrong direction"
    assert hip.hipMemcpy(host(h), d.ptr, 16, 4) == 0
    d.free()
    assert hip.hipMemcpy(host(h), d.ptr, 16, 2) == 1, "after free"


def test_configuration_by_environment_and_abort() -> None:
    program = (
        "import sys, ctypes\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})\n"
        "from hipsim import harness\n"
        "lib = harness.runtime()\nn = ctypes.c_int()\n"
        "print(lib.hipGetDeviceCount(ctypes.byref(n)), n.value)\n"
        "p = ctypes.c_void_p()\nprint([lib.hipMalloc(ctypes.byref(p), 8) for _ in range(3)])\n"
    )
    env = {**os.environ, "HIPSIM_DEVICES": "gfx942:2", "HIPSIM_FAIL": "hipMalloc:2=2"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split("\n")[:2] == ["0 2", "[0, 2, 0]"]


def test_opens_by_name_as_a_program_would() -> None:
    program = (
        "import ctypes; n = ctypes.c_int(); hip = ctypes.CDLL('libamdhip64.so.7'); "
        "print(hip.hipRuntimeGetVersion(ctypes.byref(n)), "
        "n.value // 10**7)"
    )
    env = {**os.environ, "LD_LIBRARY_PATH": str(harness.library_path())}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == ["0", "7"]

"""HIP's functions as tests let them fail one call after the other: with which error, and what they leave."""

from __future__ import annotations

FREES = (
    "hipFree",
    "hipHostFree",
    "hipModuleUnload",
    "hipStreamDestroy",
    "hipEventDestroy",
    "hipGraphDestroy",
    "hipGraphExecDestroy",
    "hipStreamEndCapture",
)
"""Functions that give something back or end it: the simulator's failing call has not done so."""

ERRORS = {"hipMalloc": 2, "hipHostMalloc": 2, "hipModuleLaunchKernel": 719, "hipModuleLoadData": 209}
"""hipError_t by function; any other fails with hipErrorUnknown."""

UNKNOWN = 999

ALIKE = {"hipGetDevice", "hipSetDevice", "hipGetDeviceCount", "hipGetLastError", "hipPointerGetAttributes"}
"""Functions of which one call is like another: they are called before anything else is."""

GRAPHS = (
    "hipStreamBeginCapture",
    "hipStreamEndCapture",
    "hipStreamIsCapturing",
    "hipGraphInstantiate",
    "hipGraphLaunch",
    "hipGraphDestroy",
    "hipGraphExecDestroy",
)
"""Functions of recording and replaying."""

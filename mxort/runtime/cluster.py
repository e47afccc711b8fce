"""A Ray cluster: the one at an address, or one that is made of this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from mxort.errors import MxortError
from mxort.runtime.session import one_line

ADDRESS = "RAY_ADDRESS"
"""The environment variable that names a cluster, as for Ray's own programs."""

LOCAL = "local"
"""In the place of an address: a cluster that is made of this machine."""

# Read when the module is imported, in every process.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report usage
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",  # it would leave other machines idle
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # 5 are few on a machine that is busy
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's next default, and no warning of it
}
_PASSED_ON = ("MXORT_PACKED_WEIGHTS", "MXORT_KERNEL")
"""What the library reads, where it is set here, is set in the processes of the cluster too."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 Ray leaves 127.0.0.1 as it is, where otherwise it takes an address that other machines reach."""

_OBJECTS_BYTES = 512_000_000


@contextlib.contextmanager
def connected(address: str, *, cpus: int = 0) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster at ``address``.

    "local" makes one of this machine, at the loopback address, with its cores, or ``cpus`` where these are more; it
    ends with the block. A program that is connected already stays so. Raises MxortError where ray is not installed,
    and for a cluster that cannot be reached. Clusters of this machine have a token (Ray's default), so that nobody else
    can use them.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address == LOCAL or address.startswith(("127.0.0.1:", "localhost:")):
        os.environ.setdefault(_LOOPBACK, "0")
    try:
        import ray
        from ray import is_initialized  # which a folder that happens to be called ray has not
    except ImportError as error:
        raise MxortError(f'a cluster needs mxort[ray] ({error}): pip install "mxort[ray]"') from error
    if is_initialized():
        yield ray
        return
    passed_on = [*_ENVIRONMENT, *(name for name in _PASSED_ON if name in os.environ)]
    quiet = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {name: os.environ[name] for name in passed_on}},
    }
    try:
        if address != LOCAL:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address=LOCAL,
                num_cpus=max(os.cpu_count() or 1, cpus),
                object_store_memory=_OBJECTS_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except Exception as error:  # of several types, without a base of their own
        raise MxortError(f"{address}: Ray: {one_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def cpus_of(ray: Any) -> list[float]:
    """Those of each node that is alive and has any."""
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return [count for count in nodes if count]

"""docs/pipelines.md, Ray: a server of several processes and a conversion by tasks, on two nodes of this machine.

A node is a raylet, with processes of its own; each has one CPU, so that two replicas are on two nodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import threading
import time

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import httpx
import numpy as np
import psutil
import pytest
import ray
from onnx import TensorProto, helper, numpy_helper, save
from ray.cluster_utils import Cluster

import mxort
from document import run_blocks
from mxort.cli import main
from serving import decoder_folder, encoder_folder, started

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # of Ray Serve, about itself

WIDTH, LAYERS = 256, 8
GOOD = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0}
LONG = {**GOOD, "max_tokens": 56, "ignore_eos": True}


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """The working directory, where Ray's processes look for modules: the source tree would come before the wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(scope="module")
def two_nodes():
    """The address of a cluster."""
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "node_ip_address": "127.0.0.1"}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    yield made.address
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders")
    mxort.convert_folder(decoder_folder(path / "float"), path / "tiny")
    return path / "tiny", encoder_folder(path / "encoder")


@pytest.fixture
def model(tmp_path):
    """Layers of random weights in external data; the last is the first once more."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH), np.float32), f"w{n}")
        for n in range(LAYERS)
    ]
    order = [*range(LAYERS), 0]
    nodes = [
        helper.make_node("MatMul", [f"h{place}", f"w{n}"], [f"h{place + 1}"], name=f"layer {place}")
        for place, n in enumerate(order)
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH])
        for name in ("h0", f"h{len(order)}")
    )
    graph = helper.make_graph(nodes, "layers", [x], [y], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(made, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return tmp_path / "model.onnx"


def contents(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def raylets_of(processes):
    return {process.ppid() for process in processes}


def workers():
    """Processes of nodes in which mxort is loaded."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and parent.name() == "raylet":
                loaded = any("/mxort/_native" in each.path for each in process.memory_maps())
                found += [process] if loaded else []
    return found


def test_the_blocks(tmp_path):
    decoder_folder(tmp_path / "smollm2")
    converted, said = run_blocks("Ray", tmp_path)
    assert "nodes converted" in converted
    assert len(said.strip()) > len("''")  # some text, of random weights
    assert mxort.inspect(tmp_path / "smollm2-mxfp4" / "model.onnx").converted


def test_a_conversion_on_two_nodes_is_the_same(two_nodes, model, tmp_path):
    with ray.init(address=two_nodes):  # whose end is that of the processes
        for name, address in (("here", None), ("there", two_nodes)):
            (tmp_path / name).mkdir()
            report = mxort.convert(model, tmp_path / name / "model.onnx", cluster=address)
            assert len(report.converted) == LAYERS + 1
        assert ray.is_initialized()
        assert len(raylets_of(workers())) == 2
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(contents(tmp_path / "here")) == 2


def test_what_a_cluster_cannot_convert(two_nodes, model, tmp_path, capsys):
    def refused(*arguments):
        assert main(["convert", *map(str, arguments), "--ray"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "expected no calibration" in refused(model, "--calibration", model.parent)
    broken = model.with_name("broken.onnx")
    broken.write_bytes(b"nothing")
    assert "not an ONNX model" in refused(broken, "-o", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_an_error_in_a_task_is_one_line(two_nodes, model, tmp_path, monkeypatch):
    """The nodes have another version than who asks them."""
    monkeypatch.setattr("mxort.conversion.remote.mxort_version", lambda: "9.9")
    with pytest.raises(mxort.MxortError, match=r"on a machine of the cluster, expected 9\.9"):
        mxort.convert(model, tmp_path / "out.onnx", cluster=two_nodes)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "weights"}


def on_two_nodes(two_nodes, *arguments):
    return ("--ray", "--ray-address", two_nodes, *arguments)


def replica_of(client):
    """The process that answers this time."""
    rows = client.get("/metrics").text
    return int(rows.split('replica="')[1].split('"')[0])


def replicas_of(client, wanted, seconds=120):
    """The processes that answer, once there are as many."""
    found, end = set(), time.monotonic() + seconds
    while len(found) < wanted:
        assert time.monotonic() < end, found
        with contextlib.suppress(httpx.HTTPError, IndexError):  # while one takes another's place
            found.add(replica_of(client))
        time.sleep(0.1)
    return found


def test_replicas_on_two_nodes(two_nodes, folders):
    arguments = on_two_nodes(two_nodes, "--replicas", "2")
    with started(*folders, arguments=arguments, grace=60) as (url, process):
        with httpx.Client(base_url=url, timeout=60) as client:
            found = replicas_of(client, 2)
            assert len(raylets_of(map(psutil.Process, found))) == 2
            answers(client)
            os.kill(min(found), signal.SIGKILL)
            after = replicas_of(
                client, 2
            )  # the other one, and one in the place of the first, or its answers alone
            while min(found) in after:
                after = replicas_of(client, 2)
            answers(client)
            stream_that_ends(client, process)
        assert process.wait(60) == 0


def answers(client):
    """What a replica answers is what a server of one process does."""
    texts = {client.post("/v1/completions", json=GOOD).json()["choices"][0]["text"] for _ in range(20)}
    assert len(texts) == 1
    assert client.post("/v1/embeddings", json={"model": "encoder", "input": "cat"}).status_code == 200
    bad = client.post("/v1/completions", json={**GOOD, "n": 2})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "n")
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/health").json()["status"] == "ok"


def stream_that_ends(client, process):
    """Told to stop while it streams, the server lets the stream come to its end."""
    with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_replicas_as_many_as_are_needed(two_nodes, folders):
    arguments = on_two_nodes(two_nodes, "--replicas", "1:2", "--batches", "1", "--max-requests", "100")
    with (
        started(folders[0], arguments=arguments, grace=60) as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert len({replica_of(client) for _ in range(20)}) == 1
        enough, wrong = threading.Event(), []

        def ask():
            while not enough.is_set():
                status = client.post("/v1/completions", json=LONG).status_code
                if status != 200:
                    wrong.append(status)

        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        try:
            assert len(replicas_of(client, 2)) == 2
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        assert wrong == []


def refused(capsys, *arguments):
    """The one line that a command which is refused says."""
    assert main(["serve", *map(str, arguments), "--port", "0", "--ray"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_is_refused(two_nodes, folders, capsys, tmp_path):
    assert "the cluster has room for 2 (2 CPUs)" in refused(
        capsys, folders[0], *on_two_nodes(two_nodes)[1:], "--replicas", "3"
    )
    assert "replicas 2:1" in refused(capsys, folders[0], "--replicas", "2:1")
    assert "not a folder of models" in refused(capsys, tmp_path)


def test_a_folder_that_replicas_cannot_open(two_nodes, folders, capsys, tmp_path):
    broken = shutil.copytree(folders[0], tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    assert "onnxruntime-genai cannot serve it" in refused(capsys, broken, *on_two_nodes(two_nodes)[1:])

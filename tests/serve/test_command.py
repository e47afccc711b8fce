"""``mxort serve``: what it refuses, how it starts and how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from mxort.cli import main
from serving import started


def refused(capsys, *arguments):
    """The one line that a command which is refused says."""
    assert main(["serve", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mxort: error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["tiny"], tmp_path / "copy")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("genai_config.json", "not a folder of models"),
        ("tokenizer.json", "no tokenizer in it"),
        ("model.onnx", "names model.onnx (decoder): no such file"),
    ],
)
def test_a_folder_that_lacks_something(folder, capsys, missing, said):
    (folder / missing).unlink()
    assert said in refused(capsys, folder, "--port", 0)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"model": {}}',
        '{"model": {"decoder": {"filename": "model.onnx"}, "context_length": "long"}}',
    ],
)
def test_a_configuration_that_is_none(folder, capsys, text):
    (folder / "genai_config.json").write_text(text)
    assert "copy" in refused(capsys, folder, "--port", 0)


def test_files_that_are_broken(folder, capsys):
    (folder / "tokenizer.json").write_text("{")
    assert "onnxruntime-genai cannot serve it" in refused(capsys, folder, "--port", 0)
    (folder / "model.onnx").write_bytes(b"nothing")
    assert "onnxruntime-genai cannot open it" in refused(capsys, folder, "--port", 0)


def test_an_encoder_that_cannot_be_served(folders, tmp_path, capsys):
    folder = shutil.copytree(folders["encoder"], tmp_path / "copy")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "x.Dense", "path": "3"}]))
    assert "Dense is not served" in refused(capsys, folder, "--port", 0)
    (folder / "modules.json").write_text('[{"type": 1}]')
    assert "expected objects" in refused(capsys, folder, "--port", 0)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert "pooling ['pooling_mode_max_tokens']" in refused(capsys, folder, "--port", 0)


def test_names_that_come_twice(folders, tmp_path, capsys):
    shutil.copytree(folders["tiny"], tmp_path / "tiny")
    assert "two folders have this name" in refused(capsys, folders["tiny"], tmp_path / "tiny", "--port", 0)


def test_a_port_in_use(folders, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot listen there: Address already in use" in refused(
            capsys, folders["tiny"], "--port", port
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "70000"],
        ["--max-requests", "0"],
        ["--timeout", "-1"],
        ["--host", "nowhere.invalid"],
        ["--device", "x"],
        ["--threads", "0"],
        ["--ray", "--replicas", "0"],
        ["--ray", "--replicas", "1:"],
        ["--ray", "--replicas", "2:1"],
    ],
)
def test_options_that_are_none(folders, capsys, arguments):
    with_port = arguments if arguments[0] == "--port" else ["--port", "0", *arguments]
    try:
        refused(capsys, folders["tiny"], *with_port)
    except SystemExit as end:  # argparse's, with the same line
        assert end.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_ray_that_is_not_there(folders, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "mxort[ray]"' in refused(capsys, folders["tiny"], "--port", 0, "--ray")


@pytest.mark.parametrize("arguments", [["--replicas", "2"], ["--ray-address", "127.0.0.1:1"]])
def test_options_of_ray_without_it(folders, capsys, arguments):
    said = refused(capsys, folders["tiny"], "--port", 0, *arguments)
    assert f"{arguments[0]}: would change nothing" in said


def test_a_running_request_may_end(folders):
    """Told to stop, the server takes no more, and lets a stream come to its end."""
    with started(folders["float"]) as (url, process):
        body = {"model": "float", "prompt": "abc", "max_tokens": 50, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(20) == 0


def test_a_request_that_does_not_end_is_cut(folders):
    with started(folders["float"], arguments=["--grace", "1"]) as (url, process):
        address = url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        process.stderr.read()  # uvicorn's word on what it cut


def test_a_key_from_the_environment(folders, monkeypatch):
    monkeypatch.setenv("MXORT_API_KEY", "secret")
    with started(folders["float"]) as (url, _):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers=headers).json()["data"][0]["id"] == "float"


def test_it_listens_to_this_machine_only(folders):
    """127.0.0.2 stands for any other address of the machine."""
    with started(folders["float"]) as (url, _):
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=2)
        socket.create_connection(("127.0.0.1", port), timeout=2).close()


def test_other_addresses_when_told(folders):
    """Then other names are heard too, and without a key there is a warning."""
    command = [
        sys.executable,
        "-m",
        "mxort",
        "serve",
        str(folders["float"]),
        "--port",
        "0",
        "--host",
        "0.0.0.0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "there is no API key" in process.stderr.readline()
            port = int(process.stderr.readline().rpartition(":")[2])
            answer = httpx.get(f"http://127.0.0.2:{port}/health", headers={"host": "my.server"})
            assert answer.status_code == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0

"""mxort/session.py: where the library is, registering it, sessions on it."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

import mxort
from mxort.errors import MxortError
from mxort.runtime import hardware, session
from mxort.runtime.op_models import MatMulMXFP4, random_mxfp4, relative_rms


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    node = MatMulMXFP4(*random_mxfp4(96, 40, rng), K=96)
    return node, rng.standard_normal((3, 96), dtype=np.float32)


def test_library_path_is_the_installed_file():
    path = Path(mxort.get_library_path())
    assert path.is_absolute()
    assert path.name == "libmxort.so"
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_ep_names_say_what_the_library_exports(monkeypatch):
    assert b"CreateEpFactories" in Path(mxort.get_library_path()).read_bytes()
    assert mxort.get_ep_names() == ["MxortExecutionProvider"]
    assert mxort.get_ep_name() == "MxortExecutionProvider"
    monkeypatch.setattr(session.ctypes, "CDLL", lambda path: SimpleNamespace())
    assert mxort.get_ep_names() == []
    with pytest.raises(MxortError, match="built without the execution provider"):
        mxort.get_ep_name()


@pytest.mark.parametrize("kind", [str, Path, bytes])
def test_session_runs_the_operator(problem, tmp_path, kind):
    node, a = problem
    path = tmp_path / "op.onnx"
    path.write_bytes(node.model())
    opened = mxort.InferenceSession(path.read_bytes() if kind is bytes else kind(path))
    assert isinstance(opened, ort.InferenceSession)
    assert opened.get_providers() == ["CPUExecutionProvider"]
    assert relative_rms(opened.run(None, {"A": a})[0], node.expected(a)) < node.error_bound


def test_the_operator_needs_the_library(problem):
    """Without it the model of one node does not load: the sessions above ran our kernels, nothing else."""
    with pytest.raises(Exception, match="mxort"):
        ort.InferenceSession(problem[0].model(), providers=["CPUExecutionProvider"])


def test_register_keeps_the_users_options_and_is_idempotent(problem, capfd):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    assert mxort.register(options) is options
    assert mxort.register(options) is options
    opened = mxort.InferenceSession(problem[0].model(), options)
    assert opened.get_session_options().intra_op_num_threads == 1
    assert "already" not in capfd.readouterr().err  # what onnxruntime says of a domain registered twice


def test_register_makes_options_where_there_are_none(problem):
    options = mxort.register()
    ort.InferenceSession(problem[0].model(), options, providers=["CPUExecutionProvider"])


CPU_ONLY = ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), {"sess_options": ort.SessionOptions()}),
        ((), {"sess_options": None, "providers": CPU_ONLY, "provider_options": [{}]}),
        ((), {"providers": [("CPUExecutionProvider", {})]}),
        ((), {"providers": CPU_ONLY, "provider_options": [{}]}),
        ((), {"provider_options": [{}]}),  # onnxruntime does not look at them without providers
        ((None, CPU_ONLY, [{}]), {}),
        ((ort.SessionOptions(), CPU_ONLY), {"provider_options": None}),
        ((), {"enable_fallback": 0, "disabled_optimizers": ["ConstantFolding"]}),
        ((), {"device": "cpu", "device_options": {}}),
    ],
)
def test_it_takes_what_onnxruntimes_takes(problem, arguments, words):
    node, a = problem
    opened = mxort.InferenceSession(node.model(), *arguments, **words)
    assert relative_rms(opened.run(None, {"A": a})[0], node.expected(a)) < node.error_bound


def test_the_signature_is_onnxruntimes_and_two_keywords():
    def own(cls):
        return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]

    added = [row for row in own(mxort.InferenceSession) if row not in own(ort.InferenceSession)]
    assert [(name, kind) for name, kind, _ in added] == [
        ("device", inspect.Parameter.KEYWORD_ONLY),
        ("device_options", inspect.Parameter.KEYWORD_ONLY),
    ]
    assert [row for row in own(mxort.InferenceSession) if row not in added] == own(ort.InferenceSession)


def test_it_is_a_class_to_inherit_from(problem):
    class Doubling(mxort.InferenceSession):
        def run(self, *arguments, **words):
            return [2 * y for y in super().run(*arguments, **words)]

    node, a = problem
    assert issubclass(mxort.InferenceSession, ort.InferenceSession)
    opened = Doubling(node.model())
    assert isinstance(opened, mxort.InferenceSession)
    assert relative_rms(opened.run(None, {"A": a})[0], 2 * node.expected(a)) < node.error_bound
    opened.set_providers(CPU_ONLY)  # opens the model anew, with the options it was given
    assert relative_rms(opened.run(None, {"A": a})[0], 2 * node.expected(a)) < node.error_bound


def test_options_serve_two_sessions(problem):
    node, a = problem
    options = ort.SessionOptions()
    for _ in range(2):
        opened = mxort.InferenceSession(node.model(), sess_options=options)
        assert relative_rms(opened.run(None, {"A": a})[0], node.expected(a)) < node.error_bound


def test_complaints_are_onnxruntimes():
    for bad in (b"nonsense", "/absent.onnx", 7):
        with pytest.raises(Exception) as wanted:
            ort.InferenceSession(bad, providers=CPU_ONLY)
        with pytest.raises(type(wanted.value)):
            mxort.InferenceSession(bad)


def test_onnxruntime_is_imported_when_the_class_is_asked_for():
    code = (
        "import sys, mxort, mxort.runtime.session; assert 'onnxruntime' not in sys.modules\n"
        "sys.modules['onnxruntime'] = None\n"
        "try: mxort.InferenceSession\n"
        "except mxort.MxortError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnxruntime cannot be imported")


def test_onnxruntime_missing(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(session.importlib, "import_module", missing)
    with pytest.raises(MxortError, match=r"onnxruntime cannot be imported .*mxort\[cpu\]"):
        session.register()


@pytest.mark.parametrize("version", ["1.21.9", "1.9.0", "0.5", "unknown"])
def test_onnxruntime_too_old(monkeypatch, version):
    monkeypatch.setattr(session.importlib, "import_module", lambda name: SimpleNamespace(__version__=version))
    with pytest.raises(MxortError, match=f"onnxruntime {version} is too old: mxort needs 1.22 or later"):
        session.register()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.22.0", (1, 22)),
        ("1.27.1.dev20260101", (1, 27)),
        ("2.0", (2, 0)),
        ("nightly", (0, 0)),
        ("1", (0, 0)),
    ],
)
def test_parse_version(text, expected):
    assert session.parse_version(text) == expected


def test_package_without_compiled_part(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MxortError, match="not installed"):
        mxort.get_library_path()


def test_library_missing_beside_the_module(monkeypatch, tmp_path):
    spec = SimpleNamespace(origin=str(tmp_path / "_native.so"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(MxortError, match=r"libmxort\.so: the library is missing"):
        mxort.get_library_path()


def test_library_that_is_none(monkeypatch, tmp_path):
    fake = tmp_path / "libmxort.so"
    fake.write_text("not a library")
    monkeypatch.setattr(session, "get_library_path", lambda: str(fake))
    with pytest.raises(MxortError, match=r"onnxruntime .* refuses .*libmxort\.so"):
        session.register()


def test_open_session_names_the_file_on_one_line(tmp_path, capfd):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nonsense")
    for path in (bad, tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(MxortError) as caught:
            session.open_session(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_one_line_strips_what_onnxruntime_puts_first():
    assert session.one_line(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : a : b\n c")) == "a : b c"
    assert session.one_line(ValueError("a\n\n b")) == "a b"


@pytest.fixture
def no_hip(monkeypatch):
    runtime = SimpleNamespace(hip_runtime=lambda: {"available": False, "problem": "no HIP runtime here"})
    monkeypatch.setattr(hardware, "_native", lambda: runtime)


@pytest.mark.usefixtures("no_hip")
def test_the_default_warns_only_where_there_is_an_amd_gpu(problem, monkeypatch, tmp_path):
    model = problem[0].model()
    monkeypatch.delenv("MXORT_HIP_LIBRARY", raising=False)
    monkeypatch.setattr(hardware, "AMD_GPU_DRIVER", tmp_path / "kfd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mxort.InferenceSession(model)
        mxort.InferenceSession(model, device="cpu")
    (tmp_path / "kfd").touch()
    with pytest.warns(RuntimeWarning, match="mxort runs on the CPU: no HIP runtime here"):
        opened = mxort.InferenceSession(model)
    assert opened.get_providers() == ["CPUExecutionProvider"]
    with pytest.warns(RuntimeWarning, match="no HIP runtime here"):
        mxort.register(device="auto")
    assert [device.name for device in mxort.devices()] == ["cpu"]


@pytest.mark.usefixtures("no_hip")
@pytest.mark.parametrize("device", ["gpu", "gpu:0"])
def test_a_gpu_that_was_asked_for_is_an_error(problem, device):
    with pytest.raises(MxortError, match=f"device '{device}' cannot be used: no HIP runtime here"):
        mxort.InferenceSession(problem[0].model(), device=device)


def test_a_gpu_and_an_onnxruntime_without_providers(problem, monkeypatch):
    gpu = hardware.Device("gpu:0", "GPU", 0, "gfx950")
    monkeypatch.setattr(hardware, "devices", lambda: [gpu])
    monkeypatch.setattr(ort, "__version__", "1.23.2")
    message = r"onnxruntime 1\.23\.2 is too old for a GPU: the execution provider needs 1\.24"
    with pytest.raises(MxortError, match=message):
        mxort.InferenceSession(problem[0].model(), device="gpu")
    with pytest.warns(RuntimeWarning, match=message):
        mxort.InferenceSession(problem[0].model(), device="auto")


def test_device_or_providers(problem):
    with pytest.raises(MxortError, match="got device='cpu' and providers: expected one of them"):
        mxort.InferenceSession(problem[0].model(), device="cpu", providers=["CPUExecutionProvider"])


def test_options_belong_to_the_device_they_were_registered_for(problem):
    options = mxort.register(device="cpu")
    for device in (None, "auto", "cpu"):
        assert mxort.register(options, device=device) is options
    with pytest.raises(MxortError, match="device: got 'gpu', expected 'cpu', for which these options"):
        mxort.InferenceSession(problem[0].model(), options, device="gpu")

"""Files: bad ones give one line and nothing else; good ones appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mxort
from mxort.converters import model_io

TEXT = "(T[b,k] x) => (T[b,n] y) { p = MatMul(x, w) q = Add(p, c) y = MatMul(q, v) }"


def weights():
    rng = np.random.default_rng(6)
    shapes = {"w": (64, 96), "c": (96,), "v": (96, 64)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def model(tools):
    return tools.make_model(TEXT, weights())


@pytest.fixture
def file(model, tmp_path):
    onnx.save(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


@pytest.fixture
def external(model, tmp_path):
    """A model in a folder of its own, all of its weights in model.onnx.data."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file()
    }


def refused(source, target, match, folder):
    """The conversion fails with one line that matches, and leaves ``folder`` as it was."""
    before = snapshot(folder)
    with pytest.raises(mxort.MxortError, match=match) as caught:
        mxort.convert(source, target)
    assert "\n" not in str(caught.value)
    assert snapshot(folder) == before
    return str(caught.value)


class Killed(BaseException):
    """Stands for the end of the process: only ``except OSError`` blocks do not see it."""


def fail_at(monkeypatch, failing, error):
    """The rename of that number into the target folder fails. Returns the targets so far."""
    calls, replace = [], Path.replace

    def flaky(self, target):
        calls.append(target)
        if len(calls) == failing + 1:
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", flaky)
    return calls


def changed(external):
    """Another model with other weights, in a folder of its own."""
    folder = external.parent.parent / "changed"
    folder.mkdir(exist_ok=True)
    model = onnx.load(external)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor)[..., ::-1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    return folder / "model.onnx"


class TestBadInput:
    def test_missing(self, tmp_path):
        refused(tmp_path / "no.onnx", tmp_path / "out.onnx", r"no\.onnx: cannot read: No such file", tmp_path)

    def test_folder(self, tmp_path):
        refused(tmp_path, tmp_path / "out.onnx", "cannot read: Is a directory", tmp_path)

    @pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00" * 100, b"PK\x03\x04" + bytes(60), b"{}"])
    def test_no_onnx(self, tmp_path, content):
        (tmp_path / "in.onnx").write_bytes(content)
        refused(
            tmp_path / "in.onnx",
            tmp_path / "out.onnx",
            r"in\.onnx: not a(n ONNX| valid ONNX) model",
            tmp_path,
        )

    def test_truncated(self, file, tmp_path):
        file.write_bytes(file.read_bytes()[:-100])
        refused(file, tmp_path / "out.onnx", "not an ONNX model, or truncated", tmp_path)

    def test_tensor_shorter_than_its_shape(self, model, tmp_path):
        model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
        onnx.save(model, tmp_path / "in.onnx")
        message = refused(tmp_path / "in.onnx", tmp_path / "out.onnx", "in.onnx: tensor 'w'", tmp_path)
        assert "24576" in message and "24572" in message

    def test_missing_external_data(self, external, tmp_path):
        (external.parent / "model.onnx.data").unlink()
        refused(
            external,
            tmp_path / "out.onnx",
            r"tensor 'w': external data .*model\.onnx\.data: No such",
            tmp_path,
        )

    def test_short_external_data(self, external, tmp_path):
        data = external.parent / "model.onnx.data"
        os.truncate(data, data.stat().st_size - 1)
        refused(
            external,
            tmp_path / "out.onnx",
            r"tensor 'v' ends at byte \d+ of .*, which has \d+ bytes",
            tmp_path,
        )

    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("length", "8", "needs 24576 bytes, its external data has 8"),
            ("offset", "-1", "not a valid ONNX model: .*negative"),
            ("offset", "99999999999999", "ends at byte"),
            ("location", "../secret", "expected a path inside"),
            ("location", "/etc/passwd", "expected a path inside"),
            ("location", "", "expected a path inside"),
            ("location", ".", "expected a path inside"),
            ("location", "a\0b", "null"),
            ("offset", "many", "not a valid ONNX model"),
        ],
    )
    def test_bad_external_reference(self, external, tmp_path, key, value, match):
        proto = onnx.load(external, load_external_data=False)
        for entry in proto.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value
        external.write_bytes(proto.SerializeToString())
        refused(external, tmp_path / "out.onnx", match, tmp_path)

    def test_data_behind_a_link_that_leaves_the_folder(self, external, tmp_path):
        data = external.parent / "model.onnx.data"
        data.rename(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
        refused(external, external.parent / "out.onnx", "expected a path inside", external.parent)

    def test_invalid_graph(self, model, tmp_path):
        model.graph.node[0].input[0] = "nothing"
        onnx.save(model, tmp_path / "in.onnx")
        refused(tmp_path / "in.onnx", tmp_path / "out.onnx", "not a valid ONNX model: .*nothing", tmp_path)

    def test_sparse_initializer(self, model, tmp_path):
        model.graph.sparse_initializer.add()
        onnx.save(model, tmp_path / "in.onnx")
        refused(tmp_path / "in.onnx", tmp_path / "out.onnx", "sparse tensor '': .* UNDEFINED", tmp_path)

    def test_converted_already(self, file, tmp_path):
        mxort.convert(file, tmp_path / "once.onnx")
        refused(tmp_path / "once.onnx", tmp_path / "twice.onnx", "is converted already", tmp_path)

    def test_no_output_path(self, file, tmp_path):
        refused(file, None, "no output path given", tmp_path)


class TestBadOutput:
    def test_same_file(self, file, tmp_path):
        refused(file, file, "would overwrite the input", tmp_path)

    def test_same_file_through_links(self, file, tmp_path):
        (tmp_path / "soft.onnx").symlink_to(file)
        os.link(file, tmp_path / "hard.onnx")
        refused(file, tmp_path / "soft.onnx", "would overwrite the input", tmp_path)
        refused(file, tmp_path / "hard.onnx", "would overwrite the input", tmp_path)
        refused(tmp_path / "soft.onnx", file, "would overwrite the input", tmp_path)

    def test_data_file_of_the_input(self, external):
        refused(external, external.parent / "model.onnx.data", "would overwrite the input", external.parent)

    def test_data_of_the_input_is_kept_whatever_its_name(self, model, tmp_path):
        """The output that is replaced read the file, and so does the input."""
        for name in ("in.onnx", "out.onnx"):
            onnx.save(
                model, tmp_path / name, save_as_external_data=True, location="out.onnx.data", size_threshold=0
            )
        before = (tmp_path / "out.onnx.data").read_bytes()
        mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx.data").read_bytes() == before

    def test_missing_folder(self, file, tmp_path):
        refused(file, tmp_path / "no" / "out.onnx", "the folder .* does not exist", tmp_path)

    def test_folder_in_the_way(self, file, tmp_path):
        (tmp_path / "out.onnx").mkdir()
        refused(file, tmp_path / "out.onnx", "it exists and is no regular file", tmp_path)

    def test_device(self, file, tmp_path):
        refused(file, "/dev/null", "it exists and is no regular file", tmp_path)
        assert Path("/dev/null").is_char_device()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_unwritable_folder(self, file, tmp_path):
        (tmp_path / "locked").mkdir(mode=0o500)
        refused(file, tmp_path / "locked" / "out.onnx", "cannot write: Permission denied", tmp_path)

    def test_folder_of_the_kernel(self, file, tmp_path):
        """Unwritable for root as well."""
        refused(file, "/proc/out.onnx", "/proc/out.onnx: cannot write", tmp_path)

    @pytest.mark.parametrize("kind", ["file", "external"])
    @pytest.mark.parametrize("limit", [0, 1000, 15_000])
    def test_no_space(self, request, kind, limit, tmp_path):
        """A limit on the size of files fails writes midway, as a full disk does."""
        source = request.getfixturevalue(kind)
        (tmp_path / "out.onnx").write_bytes(b"precious")
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
            refused(source, tmp_path / "out.onnx", "out.onnx: cannot write: File too large", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)

    @pytest.mark.parametrize("existing", [False, True])
    @pytest.mark.parametrize("failing", [0, 1])
    def test_failure_between_the_renames_is_undone(self, external, tmp_path, monkeypatch, failing, existing):
        """Data file and model file are two renames; when one fails the old files are as they were."""
        if existing:
            mxort.convert(external, tmp_path / "out.onnx")
        calls = fail_at(monkeypatch, failing, OSError(5, "Input/output error"))
        source = changed(external)
        refused(source, tmp_path / "out.onnx", "cannot write: Input/output error", tmp_path)
        assert len(calls) > failing

    @pytest.mark.parametrize("failing", [0, 1])
    def test_killed_between_the_renames(self, external, tmp_path, monkeypatch, failing):
        """No clean-up of ours runs then: the old model must be whole all the same."""
        out = tmp_path / "out.onnx"
        mxort.convert(external, out)
        before = onnx.load(out)
        fail_at(monkeypatch, failing, Killed())
        with pytest.raises(Killed):
            mxort.convert(changed(external), out)
        assert onnx.load(out) == before
        monkeypatch.undo()
        mxort.convert(changed(external), out)
        assert onnx.load(out) != before

    def test_nothing_stale_stays(self, external, tmp_path):
        """Data of the output that is replaced goes, what others have does not."""
        out = tmp_path / "out.onnx"
        mxort.convert(external, out)
        (foreign := tmp_path / "out.onnx.0badf00d.data").write_bytes(b"of somebody else")
        (first,) = set(tmp_path.glob("out.onnx.*.data")) - {foreign}
        mxort.convert(changed(external), out)
        (second,) = set(tmp_path.glob("out.onnx.*.data")) - {foreign}
        assert first != second
        onnx.save(onnx.load(external), tmp_path / "single.onnx")
        mxort.convert(tmp_path / "single.onnx", out)
        assert set(tmp_path.glob("out.onnx*")) == {out, foreign}

    def test_interrupt_leaves_nothing(self, file, tmp_path):
        def interrupt(what, fraction):
            if what.startswith("quantising"):
                raise KeyboardInterrupt

        before = snapshot(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            mxort.convert(file, tmp_path / "out.onnx", progress=interrupt)
        assert snapshot(tmp_path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]


class TestGoodOutput:
    def test_single_file(self, file, tmp_path):
        before = snapshot(tmp_path)
        report = mxort.convert(file, tmp_path / "out.onnx")
        assert snapshot(tmp_path).items() >= before.items()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]
        assert report.converted_bytes == (tmp_path / "out.onnx").stat().st_size
        assert report.original_bytes == file.stat().st_size
        onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)

    def test_external_data_stays_external(self, external, tmp_path, tools):
        before = snapshot(external.parent)
        out = tmp_path / "out.onnx"
        report = mxort.convert(external, out)
        assert snapshot(external.parent) == before
        files = sorted(p.name for p in tmp_path.iterdir())
        (data,) = tmp_path.glob("out.onnx.*.data")
        assert files == ["in", "out.onnx", data.name]
        assert data.name == f"out.onnx.{hashlib.sha256(data.read_bytes()).hexdigest()[:8]}.data"
        assert report.converted_bytes == sum((tmp_path / f).stat().st_size for f in files[1:])
        onnx.checker.check_model(str(out), full_check=True)
        proto = onnx.load(out, load_external_data=False)
        for tensor in proto.graph.initializer:
            if not onnx.external_data_helper.uses_external_data(tensor):
                assert len(tensor.raw_data) < 1024
                continue
            info = {e.key: e.value for e in tensor.external_data}
            assert info["location"] == data.name
            assert int(info["offset"]) % 4096 == 0
        x = np.ones((2, 64), np.float32)
        single = tools.run_reference(mxort.convert(onnx.load(external)).model, {"x": x})
        np.testing.assert_array_equal(tools.run_reference(onnx.load(out), {"x": x})[0], single[0])

    def test_replaces_an_earlier_output(self, file, tmp_path):
        out = tmp_path / "out.onnx"
        out.write_bytes(b"old")
        mxort.convert(file, out)
        onnx.checker.check_model(str(out))

    def test_replaces_a_link_not_what_it_points_to(self, file, tmp_path):
        (tmp_path / "precious").write_bytes(b"precious")
        (tmp_path / "out.onnx").symlink_to("precious")
        mxort.convert(file, tmp_path / "out.onnx")
        assert (tmp_path / "precious").read_bytes() == b"precious"
        assert not (tmp_path / "out.onnx").is_symlink()

    def test_permissions_follow_the_umask(self, external, tmp_path):
        old = os.umask(0o027)
        try:
            mxort.convert(external, tmp_path / "out.onnx")
        finally:
            os.umask(old)
        written = list(tmp_path.glob("out.onnx*"))
        assert len(written) == 2
        assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o640}

    def test_relative_paths(self, external, monkeypatch):
        monkeypatch.chdir(external.parent)
        mxort.convert("model.onnx", "out.onnx")
        onnx.checker.check_model("out.onnx")

    def test_model_cache_of_links(self, external, tmp_path):
        """Hub caches link the model and its data to one folder of blobs, hard-linked at times."""
        blobs, snapshot_folder = tmp_path / "blobs", tmp_path / "snapshots"
        blobs.mkdir(), snapshot_folder.mkdir()
        for file in external.parent.iterdir():
            os.link(file, blobs / f"sha-{file.name}")
            (snapshot_folder / file.name).symlink_to(Path("../blobs") / f"sha-{file.name}")
        report = mxort.convert(snapshot_folder / "model.onnx", tmp_path / "out.onnx")
        assert len(report.converted) == 2

    def test_large_model_gets_a_data_file(self, file, tmp_path, monkeypatch):
        monkeypatch.setattr(model_io, "SINGLE_FILE_BYTES", 8000)
        mxort.convert(file, tmp_path / "out.onnx")
        onnx.checker.check_model(str(tmp_path / "out.onnx"))
        (data,) = tmp_path.glob("out.onnx.*.data")
        assert data.stat().st_size > 6000

    def test_large_model_of_which_nothing_is_converted(self, file, tmp_path, monkeypatch):
        """The data file is decided on again when the size is known."""
        monkeypatch.setattr(model_io, "SINGLE_FILE_BYTES", 30_000)
        proto = onnx.load(file)
        for tensor in proto.graph.initializer:
            tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()
        onnx.save(proto, file)
        report = mxort.convert(file, tmp_path / "out.onnx")
        assert not report.converted
        onnx.checker.check_model(str(tmp_path / "out.onnx"))
        (data,) = tmp_path.glob("out.onnx.*.data")
        assert data.stat().st_size > 40_000

    def test_constant_node_with_external_data(self, external, tmp_path):
        proto = onnx.load(external, load_external_data=False)
        tensor = proto.graph.initializer.pop(1)
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=tensor))
        proto.graph.node[0].output[0] = tensor.name
        external.write_bytes(proto.SerializeToString())
        report = mxort.convert(external, tmp_path / "out.onnx", exclude=("*",))
        assert not report.converted
        onnx.checker.check_model(str(tmp_path / "out.onnx"))
        kept = onnx.load(tmp_path / "out.onnx").graph.node[0].attribute[0].t
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept), weights()["c"])

    def test_source_hash_is_that_of_the_files(self, file, external, tmp_path):
        import hashlib

        report = mxort.convert(file, tmp_path / "out.onnx")
        assert report.source_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        both = external.read_bytes() + (external.parent / "model.onnx.data").read_bytes()
        assert (
            mxort.convert(external, tmp_path / "out2.onnx").source_sha256 == hashlib.sha256(both).hexdigest()
        )

    def test_onnx_ir_model_in_and_out(self, external):
        model = ir.load(external)
        values = dict(model.graph.initializers)
        report = mxort.convert(model)
        assert isinstance(report.model, ir.Model)
        assert dict(model.graph.initializers) == values, "the caller's model was changed"
        assert [n.op_type for n in model.graph] == ["MatMul", "Add", "MatMul"]
        assert [n.op_type for n in report.model.graph] == ["MatMulMXFP4", "MatMulMXFP4"]

    def test_operators_of_onnxruntime_in_the_default_domain(self, tools, tmp_path):
        """onnxruntime-genai's builder writes them; onnx's checker alone would refuse the file."""
        text = "(T[b,k] x) => (T[b,n] y) { p = SimplifiedLayerNormalization(x, s) y = MatMul(p, w) }"
        model = tools.make_model(text, {**weights(), "s": np.ones(64, np.float32)})
        onnx.save(model, tmp_path / "in.onnx")
        assert len(mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx").converted) == 1
        x = np.random.default_rng(7).standard_normal((2, 64), dtype=np.float32)
        assert np.isfinite(tools.run_onnxruntime(onnx.load(tmp_path / "out.onnx"), {"x": x})[0]).all()


def fuzz_bases():
    """Serialised models and their data files, rich in what a reader can stumble over."""
    import onnx.parser

    text = """g (float[b,k] f, bool which) => (float[b,n] y) {
      i = Unsqueeze<axes=[0]>(f) j = Softmax<axis=2>(i) o = Dropout(j) x = Squeeze<axes=[0]>(o)
      e = Gather(table, ids) l = ReduceSum<axes=[0], keepdims=0>(e)
      t = Transpose(wt) s = Constant<value_ints=[1,-1]>() r = Reshape(c, s)
      p = Gemm<alpha=0.5, transB=1>(x, wt, r) u = MatMul(x, t)
      y = If (which) <then_branch = a () => (float[b,n] d) { d = MatMul(x, t) },
                      else_branch = h () => (float[b,n] q) { q = Add(p, u) }> }"""
    rng = np.random.default_rng(8)
    graph = onnx.parser.parse_graph(text)
    for name, shape in {"wt": (40, 64), "c": (40,), "table": (9, 64), "ids": (3,)}.items():
        array = rng.standard_normal(shape, dtype=np.float32)
        if name == "ids":
            array = np.arange(3)
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=8)
    body = [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])]
    model.functions.append(
        onnx.helper.make_function("local", "f", ["a", "b"], ["c"], body, [onnx.helper.make_opsetid("", 12)])
    )
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    inline = model.SerializeToString()
    onnx.external_data_helper.convert_model_to_external_data(model, location="m.data", size_threshold=0)
    data = b""
    for tensor in model.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, "m.data", len(data), len(tensor.raw_data))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    return [(inline, b""), (model.SerializeToString(), data)]


BASES = fuzz_bases()


def convert_bytes(folder: Path, content: bytes, data: bytes) -> None:
    """Only an MxortError of one line may come out, and then no file; else a file that onnx accepts."""
    (folder / "in.onnx").write_bytes(content)
    (folder / "m.data").write_bytes(data)
    try:
        mxort.convert(folder / "in.onnx", folder / "out.onnx")
    except mxort.MxortError as error:
        assert "\n" not in str(error) and "in.onnx" in str(error)
        assert {p.name for p in folder.iterdir()} == {"in.onnx", "m.data"}
        return
    assert {p.name for p in folder.iterdir()} <= {
        "in.onnx",
        "m.data",
        "out.onnx",
        *(p.name for p in folder.glob("out.onnx.????????.data")),
    }
    for file in folder.glob("out.onnx*"):
        file.unlink()


class TestFuzz:
    def test_bases_convert(self, tmp_path):
        for content, data in BASES:
            (tmp_path / "in.onnx").write_bytes(content)
            (tmp_path / "m.data").write_bytes(data)
            report = mxort.convert(tmp_path / "in.onnx", tmp_path / "out.onnx")
            assert len(report.converted) == 3

    @settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damaged_files(self, tmp_path, data):
        """Bytes flipped, cut out, doubled or inserted anywhere in the model file."""
        content, tensors = data.draw(st.sampled_from(BASES))
        damaged = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
            kind = data.draw(st.sampled_from(["flip", "set", "cut", "insert", "double"]))
            length = data.draw(st.integers(1, 8))
            if kind == "flip":
                damaged[at] ^= 1 << data.draw(st.integers(0, 7))
            elif kind == "set":
                damaged[at] = data.draw(st.integers(0, 255))
            elif kind == "cut":
                del damaged[at : at + length]
            elif kind == "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            else:
                damaged[at:at] = damaged[at : at + length]
        convert_bytes(tmp_path, bytes(damaged), tensors)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(base=st.sampled_from(BASES), cut=st.floats(0, 1))
    def test_truncated_files(self, tmp_path, base, cut):
        content, tensors = base
        convert_bytes(tmp_path, content[: int(len(content) * cut)], tensors)
        convert_bytes(tmp_path, content, tensors[: int(len(tensors) * cut)])

    @settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.binary(max_size=300))
    def test_random_files(self, tmp_path, content):
        convert_bytes(tmp_path, content, b"")

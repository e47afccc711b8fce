"""mxort/cli.py as users meet it: a process, its exit status, and what it says on which stream."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import mxort
from command import run
from decoders import prefix_sums
from mxort.cli import app as cli
from mxort.cli import doctor
from mxort.conversion.report import Report
from tiny_models import mlp


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.fixture
def folder(tmp_path):
    """model.onnx, its conversion converted.onnx, and things that are no models."""
    mlp(tmp_path / "model.onnx")
    mxort.convert(tmp_path / "model.onnx", tmp_path / "converted.onnx")
    (tmp_path / "text.onnx").write_text("this is no model\n")
    (tmp_path / "empty.onnx").touch()
    data = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(data[: len(data) // 2])
    mlp(tmp_path / "external.onnx", external=True)
    os.truncate(tmp_path / "external.onnx.data", 1000)
    mlp(tmp_path / "orphan.onnx", external=True)
    (tmp_path / "orphan.onnx.data").unlink()
    mlp(tmp_path / "nan.onnx", scale=float("nan"))
    np.savez(tmp_path / "wrong.npz", z=np.zeros(1))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).standard_normal((200, 64), np.float32))
    (tmp_path / "folder").mkdir()
    return tmp_path


BAD_INPUT = {
    "no command": ([], "command"),
    "unknown command": (["konvert"], "konvert"),
    "no model": (["convert"], "model"),
    "missing file": (["convert", "absent.onnx", "-o", "out.onnx"], "absent.onnx"),
    "folder as model": (["convert", "folder", "-o", "out.onnx"], "folder"),
    "current folder as model": (["convert", "."], ".: "),
    "not ONNX": (["convert", "text.onnx", "-o", "out.onnx"], "text.onnx"),
    "empty file": (["convert", "empty.onnx", "-o", "out.onnx"], "empty.onnx"),
    "truncated": (["convert", "truncated.onnx", "-o", "out.onnx"], "truncated.onnx"),
    "short external data": (["convert", "external.onnx", "-o", "out.onnx"], "external.onnx.data"),
    "missing external data": (["convert", "orphan.onnx", "-o", "out.onnx"], "orphan.onnx.data"),
    "already converted": (["convert", "converted.onnx", "-o", "out.onnx"], "converted already"),
    "converted, dry run": (["convert", "converted.onnx", "--dry-run"], "converted already"),
    "output is input": (["convert", "model.onnx", "-o", "model.onnx"], "overwrite"),
    "output is input, otherwise spelt": (
        ["convert", "model.onnx", "-o", "folder/../model.onnx"],
        "overwrite",
    ),
    "no such target folder": (["convert", "model.onnx", "-o", "absent/out.onnx"], "absent"),
    "folder as target": (["convert", "model.onnx", "-o", "folder"], "folder"),
    "unwritable target": (["convert", "model.onnx", "-o", "/proc/out.onnx"], "/proc/out.onnx"),  # root or not
    "unknown preset": (["convert", "model.onnx", "-o", "out.onnx", "--preset", "w4a7"], "did you mean 'w4a"),
    "unknown value": (["convert", "model.onnx", "-o", "out.onnx", "--activation-format", "int8"], "'int8'"),
    "number out of range": (["convert", "model.onnx", "-o", "out.onnx", "--rotation", "48"], "'48'"),
    "not a number": (["convert", "model.onnx", "-o", "out.onnx", "--rotation", "many"], "many"),
    "negative number": (["convert", "model.onnx", "-o", "out.onnx", "--min-elements", "-1"], "-1"),
    "unknown flag": (["convert", "model.onnx", "-o", "out.onnx", "--frobnicate"], "--frobnicate"),
    "NaN under --strict": (["convert", "nan.onnx", "-o", "out.onnx", "--strict"], "fc2"),
    "unknown report": (["convert", "model.onnx", "-o", "out.onnx", "--report", "report.pdf"], "report.pdf"),
    "report without a folder": (
        ["convert", "model.onnx", "-o", "out.onnx", "--report", "no/r.txt"],
        "no/r.txt",
    ),
    "report over a model": (["convert", "model.onnx", "-o", "out.json", "--report", "out.json"], "out.json"),
    "inspect a text": (["inspect", "text.onnx"], "text.onnx"),
    "compare with nothing": (["compare", "model.onnx", "absent.onnx"], "absent.onnx"),
    "compare with a text": (["compare", "model.onnx", "text.onnx"], "text.onnx"),
    "wrong inputs": (["compare", "model.onnx", "converted.onnx", "--inputs", "wrong.npz"], "input x"),
    "inputs that are none": (
        ["compare", "model.onnx", "converted.onnx", "--inputs", "text.onnx"],
        "text.onnx",
    ),
    "unknown dimension": (["compare", "model.onnx", "converted.onnx", "--dim", "n=3"], "'n'"),
    "dimension without size": (["compare", "model.onnx", "converted.onnx", "--dim", "batch"], "NAME=SIZE"),
    "calibration that is none": (["convert", "model.onnx", "--calibration", "text.onnx"], "text.onnx"),
    "calibration of other inputs": (["convert", "model.onnx", "--calibration", "wrong.npz"], "wrong.npz"),
    "no calibration": (["convert", "model.onnx", "--algorithm", "gptq"], "needs calibration data"),
    "--effort for rtn": (["convert", "model.onnx", "--effort", "2"], "effort 2: would change nothing"),
    "text of a model that writes none": (
        ["convert", "model.onnx", "-o", "out.onnx", "--calibration", "self"],
        "model.onnx: is no decoder that can write text: input x is no integers",
    ),
    "--self-windows for data": (
        ["convert", "model.onnx", "--calibration", "data.npz", "--self-windows", "9"],
        "--self-windows 9: would change nothing: expected --calibration self too",
    ),
    "--memory for no data": (["convert", "model.onnx", "--memory", "9"], "--memory 9: would change nothing"),
    "a format to measure": (
        ["sensitivity", "model.onnx", "--data", "data.npz", "--weight-format", "mxfp6_e2m3"],
        "--weight-format",
    ),
    "eval without data": (["eval", "model.onnx", "converted.onnx"], "--data"),
    "eval with nothing": (["eval", "model.onnx", "absent.onnx", "--data", "data.npz"], "absent.onnx"),
    "bench nothing": (["bench", "model", "absent.onnx"], "absent.onnx"),
    "no runs": (["bench", "model", "model.onnx", "--runs", "0"], "--runs"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(folder, case):
    arguments, named = BAD_INPUT[case]
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    done = run(*arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("mxort: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert named in done.stderr
    assert {name: (folder / name).stat().st_mtime_ns for name in files(folder)} == before


def test_full_disk(folder):
    """A file size limit stands in for a full disk: it fails in the middle of writing, as that does."""
    before = files(folder)
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    code += "from mxort.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-B", "-c", code, "convert", "model.onnx", "-o", "out.onnx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mxort: error: out.onnx: cannot write: ")
    assert done.stderr.count("\n") == 1
    assert files(folder) == before


def test_convert_inspect_compare(folder):
    done = run("convert", "model.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "2 nodes converted, 0 skipped" in done.stdout
    assert (folder / "model.mxfp4.onnx").read_bytes() == (folder / "converted.onnx").read_bytes()

    shown = run("inspect", "model.mxfp4.onnx", cwd=folder)
    assert shown.returncode == 0
    assert "by mxort" in shown.stdout

    compared = run("compare", "model.onnx", "model.mxfp4.onnx", "--layers", "--dim", "batch=20", cwd=folder)
    assert compared.returncode == 0
    assert "fc1" in compared.stdout
    assert "20x96" in compared.stdout


def test_convert_with_calibration_and_eval(folder):
    flags = ["--calibration", "data.npz", "--threads", "1", "--cache", "cache", "--memory", "1"]
    done = run("convert", "model.onnx", "-o", "out.onnx", "--json", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [site["algorithm"] for site in json.loads(done.stdout)["sites"]] == ["mr-gptq", "mr-gptq"]
    assert len(files(folder / "cache")) == 2
    cosine = {}
    for name in ("converted.onnx", "out.onnx"):
        done = run("eval", "model.onnx", name, "--data", "data.npz", "--json", "--threads", "1", cwd=folder)
        assert done.returncode == 0, done.stderr
        cosine[name] = json.loads(done.stdout)["metrics"]["cosine"]
    assert 0.9 < cosine["converted.onnx"] < cosine["out.onnx"] < 1
    shown = run("eval", "model.onnx", "out.onnx", "--data", "data.npz", cwd=folder)
    assert "embedding, 1 samples, 200 predictions" in shown.stdout
    assert "rank_agreement" in shown.stdout


def test_calibration_that_the_model_writes(folder):
    prefix_sums(folder / "decoder.onnx", cached=True)
    flags = ["--calibration", "self", "--self-windows", "6", "--self-tokens", "40", "--cache", "cache"]
    command = ["convert", "decoder.onnx", "-o", "out.onnx", *flags]
    done = run(*command, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("mxort: the model writes 6 windows of 40 tokens to calibrate on: about ")
    assert done.stderr.count("\n") == 1
    assert "6 windows of 40 tokens that the model wrote itself" in json.loads(done.stdout)["calibration"]
    first = {path: path.read_bytes() for path in sorted(folder.glob("out.onnx*"))}
    text = next(iter((folder / "cache").glob("self-written-*.npy")))
    assert np.load(text).shape == (6, 40)

    again = run(*command, cwd=folder)
    assert (again.returncode, again.stderr) == (0, ""), "the text was kept: nothing is written, nothing told"
    assert "calibrated on 6 windows of 40 tokens that the model wrote itself" in again.stdout
    assert {path: path.read_bytes() for path in sorted(folder.glob("out.onnx*"))} == first

    (folder / "self").mkdir()  # a folder of that name has a path
    np.save(folder / "self" / "0.npy", np.load(text)[0])
    done = run(*command, "--calibration", "./self", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["calibration"].split(", ")
    assert (parts[0], parts[-1]) == (
        "6 windows of 40 tokens that the model wrote itself (temperature 1",
        "self",
    )
    changed = {path: path.read_bytes() for path in sorted(folder.glob("out.onnx*"))} != first
    assert changed, "both parts are calibrated on"


def test_formats_by_what_the_model_writes(folder):
    prefix_sums(folder / "decoder.onnx", cached=True)
    flags = ["--calibration", "self", "--self-windows", "4", "--self-tokens", "40", "--budget-bits", "6.5"]
    done = run("convert", "decoder.onnx", "-o", "out.onnx", *flags, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, "written once, for both"
    report = json.loads(done.stdout)
    assert "wrote itself" in report["calibration"]
    assert report["recipe"]["layer_formats"]


def test_eval_of_several_models_and_its_page(folder):
    models = ["converted.onnx", "model.onnx"]
    flags = ["--data", "data.npz", "--threads", "1"]
    done = run("eval", "model.onnx", *models, *flags, "--json", "--report", "r.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [r["converted"] for r in results] == models
    assert [r["converted_bytes"] for r in results] == [(folder / name).stat().st_size for name in models]
    page = (folder / "r.html").read_text()
    assert page.startswith("<!doctype html>") and all(name in page for name in models)
    shown = run("eval", "model.onnx", *models, *flags, cwd=folder)
    assert [line.split(":")[0] for line in shown.stdout.splitlines() if "samples" in line] == models


def test_flags_reach_the_recipe(folder):
    flags = [
        "--preset",
        "w4a8",
        "--rotation",
        "32",
        "--exclude",
        "fc2",
        "--no-column-multiplier",
        "--min-elements",
        "7",
    ]
    done = run("convert", "model.onnx", "-o", "out.onnx", "--json", *flags, cwd=folder)
    recipe = json.loads(done.stdout)["recipe"]
    assert recipe["activation_format"] == "mxfp8_e4m3"
    assert recipe["rotation"] == 32
    assert recipe["exclude"] == ["fc2"]
    assert recipe["column_multiplier"] is False
    assert recipe["min_elements"] == 7


def test_reports_of_every_kind(folder):
    reports = [flag for name in ("r.txt", "r.json", "r.html") for flag in ("--report", name)]
    done = run("convert", "model.onnx", "-o", "out.onnx", *reports, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "fc1" in (folder / "r.txt").read_text()
    assert "\x1b" not in (folder / "r.txt").read_text()
    assert [s.node for s in Report.from_json((folder / "r.json").read_text()).sites] == ["fc1", "fc2"]
    assert (folder / "r.html").read_text().startswith("<!doctype html>")


def test_dry_run_writes_nothing_and_knows_the_recipe(folder):
    before = files(folder)
    done = run(
        "convert", "model.onnx", "--dry-run", "--exclude", "fc1", "--json", "--report", "r.html", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    sites = json.loads(done.stdout)["sites"]
    assert [(s["node"], s["status"]) for s in sites] == [("fc1", "skipped"), ("fc2", "convertible")]
    assert files(folder) == before


FORMATS = ["--layer-formats", "cf1=mxfp8_e4m3"]


@pytest.mark.parametrize(
    ("command", "formats"),
    [
        (["convert", "model.onnx"], FORMATS),
        (["convert", "model.onnx", "--dry-run"], FORMATS),
        (["sensitivity", "model.onnx", "--data", "data.npz"], []),
    ],
    ids=["convert", "dry run", "sensitivity"],
)
def test_a_pattern_that_matches_nothing_is_said_on_standard_error(folder, command, formats):
    done = run(*command, "--json", "--exclude", "fc9", *formats, cwd=folder)
    assert done.returncode == 0, done.stderr
    expected = [
        "mxort: warning: exclude: 'fc9' matches no node with a weight; close to it: fc2, fc1",
        "mxort: warning: layer_formats: 'cf1' matches no node with a weight; close to it: fc1",
    ]
    assert done.stderr.splitlines() == expected[: 2 if formats else 1]
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "model.onnx", "-o", "out.onnx"],
        ["convert", "model.onnx", "--dry-run"],
        ["inspect", "converted.onnx"],
        ["compare", "model.onnx", "converted.onnx", "--layers"],
        ["compare", "model.onnx", "model.onnx"],
        ["bench", "model", "model.onnx", "converted.onnx", "--runs", "2", "--warmup", "0"],
        ["doctor"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_json_is_all_there_is_on_standard_output(folder, arguments):
    done = run(*arguments, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert isinstance(json.loads(done.stdout, parse_constant=pytest.fail), dict)
    table = run(*arguments, cwd=folder) if "out.onnx" not in arguments else None
    assert table is None or (table.returncode == 0 and len(table.stdout) > 100 and "\x1b" not in table.stdout)


def test_min_sqnr_decides_the_exit_status(folder):
    compare = ["compare", "model.onnx", "converted.onnx"]
    worst = json.loads(run(*compare, "--json", cwd=folder).stdout)["worst_sqnr_db"]
    assert run(*compare, "--min-sqnr", worst - 0.01, cwd=folder).returncode == 0
    below = run(*compare, "--min-sqnr", worst + 0.01, cwd=folder)
    assert below.returncode == 1
    assert below.stderr.startswith("mxort: SQNR ")
    assert run("compare", "model.onnx", "nan.onnx", "--min-sqnr", "-1000", cwd=folder).returncode == 1


def test_doctor_fails_where_something_is_broken(folder):
    done = run("doctor", "--json", MXORT_KERNEL="nonsense")
    assert done.returncode == 1
    assert json.loads(done.stdout)["healthy"] is False
    assert "nonsense" in done.stdout


def test_version_and_help():
    assert run("--version").stdout.startswith("mxort ")
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("convert", "inspect", "compare", "bench", "doctor"):
        assert command in shown.stdout
    options = run("convert", "--help").stdout
    for option in mxort.Recipe.__dataclass_fields__:
        assert "--" + option.replace("_", "-") in options


def test_help_imports_nothing_slow():
    code = "import sys; from mxort.cli import app; app._parser(); "
    code += "print([name for name in ('numpy', 'onnx') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("seconds", [0.3, 3.0], ids=["starting", "running"])
def test_interrupt(folder, seconds):
    command = [sys.executable, "-m", "mxort", "bench", "model", "model.onnx", "--runs", "100000000"]
    # A shell starts its background jobs, and so perhaps this test, with the signal ignored, which children inherit.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, inherited)
    try:
        deadline = time.monotonic() + 60
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # the worker, and multiprocessing's own helper
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert (out, err) == ("", "mxort: interrupted\n")
        while time.monotonic() < deadline and group_is_alive(process.pid):
            time.sleep(0.05)  # the helper ends a moment after its parent
        assert not group_is_alive(process.pid)
    finally:
        if group_is_alive(process.pid):  # whatever failed above: the run would go on for ever
            os.killpg(process.pid, signal.SIGKILL)


def test_a_reader_that_stops_reading(folder):
    head = shutil.which("head")
    assert head
    code = f"{sys.executable} -m mxort inspect converted.onnx | {head} -n 1"
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_square_brackets_in_names_are_printed(tmp_path):
    """rich would take them for markup, and fail at a closing tag that nothing opened."""
    path = mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].name = "fc1[/bold]"
    model.graph.node[3].name = "[red]fc2"
    onnx.save(model, path)
    converted = run("convert", path, "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.txt")
    assert converted.returncode == 0, converted.stderr
    inspected = run("inspect", path)
    assert inspected.returncode == 0, inspected.stderr
    for text in (inspected.stdout, (tmp_path / "r.txt").read_text()):
        assert "fc1[/bold]" in text
        assert "[red]fc2" in text


def test_a_bug_is_not_passed_off_as_bad_input(monkeypatch):
    """Anything but MxortError is ours: it keeps its traceback."""

    def bug(arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "run", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["doctor"])

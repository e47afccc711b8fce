"""What `mxort doctor` and `python -m tools.bench ops --device gpu` say on a simulated machine."""

import json

import pytest
from machine_process import run


def check_doctor() -> None:
    from machine import assert_clean, new_machine

    from mxort.runtime import doctor

    sim = new_machine("gfx942,gfx90a")
    checks, kernels = doctor.check_gpus()
    assert [(c.name, c.status) for c in checks] == [("gpu:0", doctor.OK), ("gpu:1", doctor.INFO)]
    assert checks[0].detail == (
        "hipsim gfx942 (simulated), gfx942, 304 compute units, 17.2 GB, 0000:05:00.0; "
        f"{len(kernels)} self-checks of kernels right"
    )
    assert checks[1].detail.endswith("not used, mxort has no kernels for gfx90a, only for gfx950, gfx942")
    assert all(k.passed and k.error <= k.bound for k in kernels)
    products = [k for k in kernels if k.preparation]
    assert len(products) == 24 and all(k.error > 0 for k in products)
    assert {k.preparation for k in products} == {
        "prepare_bf16", "prepare_fp4_bf16", "prepare_e2m3_bf16", "prepare_e3m2_bf16", "prepare_e4m3_bf16"
    }  # fmt: skip
    families = (
        "product",
        "patches",
        "attention",
        "prefill",
        "softmax",
        "norm",
        "reduce",
        "top",
        "pointwise",
        "copy",
    )
    assert {k.kernel.split("_")[0] for k in kernels if not k.preparation} == {*families, "gather", "activate"}
    runtime = doctor._hip()
    assert runtime.status == doctor.OK and "libamdhip64.so.7 7.0.0" in runtime.detail
    assert_clean(sim)


def test_doctor_checks_every_gpu():
    run(check_doctor)


def check_bench() -> None:
    from machine import assert_clean, new_machine

    from tools.bench.__main__ import main

    sim = new_machine("gfx942:2")
    arguments = ["ops", "--device", "gpu:1", "--shape", "3x96x40", "--runs", "2", "--warmup", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--json"]) == 0
    assert_clean(sim)
    assert main(["ops", "--device", "gpu:2", "--shape", "3x96x40"]) == 2


def test_bench_on_a_gpu():
    pytest.importorskip("rich")
    stderr = run(check_bench)
    assert "GPU 2: the HIP runtime lists 2" in stderr


def check_bench_output() -> None:
    import contextlib
    import io

    from machine import new_machine

    from tools.bench.__main__ import main

    new_machine("gfx942")
    arguments = ["ops", "--device", "gpu", "--shape", "3x96x40", "--runs", "2"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main(arguments)
        main([*arguments, "--json"])
    table, brace, data = text.getvalue().partition("{")
    assert "SIMULATED DEVICE" in table and "gemm_bf16_16x" in table
    result = json.loads(brace + data)
    assert result["simulated"] and not result["wrong"]
    assert [row["activation_format"] for row in result["rows"]] == [
        "none", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4"
    ]  # fmt: skip
    assert all(row["timing"]["runs"] == 2 and row["tflop_per_s"] > 0 for row in result["rows"])


def test_bench_says_that_a_simulator_measured_nothing():
    run(check_bench_output)

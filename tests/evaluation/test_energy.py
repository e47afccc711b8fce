"""Counters of energy, in a folder like /sys/class, and an amd-smi that is a script."""

from __future__ import annotations

import time

import pytest

from mxort.evaluation.energy import CpuEnergy, GpuEnergy


def counter(folder, microjoules):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    rapl = tmp_path / "powercap"
    for name, start in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 0)):
        counter(rapl / name, start)
    energy = CpuEnergy(tmp_path)
    counter(rapl / "intel-rapl:0", 3_500_000)
    counter(rapl / "intel-rapl:1", 1_000_000)  # it began again at 10 J
    counter(rapl / "intel-rapl:0:0", 7_000_000)
    assert energy.joules() == pytest.approx(2.5 + 2)


def test_sockets_of_hwmon(tmp_path):
    hwmon = tmp_path / "hwmon" / "hwmon3"
    hwmon.mkdir(parents=True)
    for number, label in ((1, "Ecore000"), (2, "Esocket0")):
        (hwmon / f"energy{number}_label").write_text(label)
        (hwmon / f"energy{number}_input").write_text("5000000")
    energy = CpuEnergy(tmp_path)
    for number in (1, 2):
        (hwmon / f"energy{number}_input").write_text("6000000")
    assert energy.joules() == pytest.approx(1)


def test_no_counter(tmp_path):
    assert CpuEnergy(tmp_path).joules() is None


def program(tmp_path, text):
    path = tmp_path / "amd-smi"
    path.write_text(f"#!/bin/sh\ncat <<END\n{text}\nEND\n")
    path.chmod(0o755)
    return str(path)


def test_gpus_by_their_power(tmp_path):
    text = '[{"gpu": 0, "power": {"socket_power": {"value": 300, "unit": "W"}}}, {"power": {"socket_power": 100}}]'
    began = time.perf_counter()
    energy = GpuEnergy(program(tmp_path, text))
    time.sleep(1.2)
    joules = energy.joules()
    assert 400 * 0.4 < joules <= 400 * (time.perf_counter() - began)


@pytest.mark.parametrize("text", ["nothing", "[]", '{"power": {"socket_power": "N/A"}}'])
def test_gpus_that_tell_nothing(tmp_path, text):
    assert GpuEnergy(program(tmp_path, text)).joules() is None

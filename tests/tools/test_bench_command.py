"""`python -m tools.bench`: bad input is one line, and --json prints nothing else."""

import json

import pytest

from tools.bench.__main__ import main


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ops", "--shape", "4x4"], "MxKxN"),
        (["ops", "--peers", "nobody"], "nobody"),
        (["bounds", "--cases", "nothing"], "nothing"),
    ],
)
def test_bad_input(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as exit:  # argparse's own
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ops", "--shape", "1x64x48", "--runs", "1", "--warmup", "0", "--kernels"],
        ["bounds", "--cases", "overhead", "--work", "bench"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_and_tables(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out, parse_constant=pytest.fail), dict)
    assert main(arguments) == 0
    assert len(capsys.readouterr().out) > 100

"""Servers of tiny folders, once for a file of tests."""

from __future__ import annotations

import httpx
import pytest

import mxort
from serving import decoder_folder, encoder_folder, serving


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """tiny: a converted language model; encoder: a sentence encoder."""
    path = tmp_path_factory.mktemp("folders")
    mxort.convert_folder(decoder_folder(path / "float"), path / "tiny")
    return {"tiny": path / "tiny", "encoder": encoder_folder(path / "encoder"), "float": path / "float"}


@pytest.fixture(scope="module")
def server(folders):
    """(address, models by name)."""
    with serving(folders["tiny"], folders["encoder"]) as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server[0], timeout=30) as client:
        yield client

"""README's picture shows what docs/models.json has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tools import models_picture


def labels(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_the_picture_is_drawn_from_the_numbers(tmp_path: Path) -> None:
    facts = json.loads(models_picture.FACTS.read_text())
    models_picture.draw(facts, tmp_path / "models.svg")
    assert labels(tmp_path / "models.svg") == labels(models_picture.PICTURE)
    small = facts["models"]["SmolLM2-135M-Instruct"]["rows"]
    assert {f"{row['bytes'] / 1e6:.0f}" for row in small.values()} <= set(labels(models_picture.PICTURE))


def test_every_variant_of_both_models_was_measured() -> None:
    facts = json.loads(models_picture.FACTS.read_text())
    assert facts["machine"]["cpu"]
    assert list(facts["models"]) == list(models_picture.SUBJECTS)
    for model in facts["models"].values():
        assert list(model["rows"]) == list(models_picture.VARIANTS)
        for row in model["rows"].values():
            assert row["bytes"] > 0 and row["run_ms"] > 0 and row[model["metric"]] > 0

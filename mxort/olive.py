"""Olive: the pass MxortMXFP4, :func:`mxort.convert` in a workflow. Needs olive-ai.

python -m mxort.olive > passes.json                           # Olive's own passes and this one
olive run --config run.json --package-config passes.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Optional

from olive.model import ONNXModelHandler  # type: ignore[import-not-found]
from olive.model.utils import resolve_onnx_path  # type: ignore[import-not-found]
from olive.package_config import OlivePackageConfig  # type: ignore[import-not-found]
from olive.passes import Pass  # type: ignore[import-not-found]
from olive.passes.pass_config import PassConfigParam  # type: ignore[import-not-found]

from mxort.conversion.pipeline import convert
from mxort.conversion.recipe import PRESETS, Recipe


class MxortMXFP4(Pass):  # type: ignore[misc]  # Olive has no types
    """Weights to MXFP4. ``preset`` and the options of a recipe are the pass's, by the same names."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        presets = f"one of {', '.join(PRESETS)}"
        config = {"preset": PassConfigParam(type_=str, default_value="weight-only", description=presets)}
        for option in fields(Recipe):
            kind: Any = list[str] if isinstance(option.default, tuple) else type(option.default)
            config[option.name] = PassConfigParam(
                type_=Optional[kind],  # noqa: UP045 (of a variable)
                default_value=None,
                description=option.metadata["help"],
            )
        return config

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        target = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        given = {o.name: getattr(config, o.name) for o in fields(Recipe)}
        options: Any = {name: value for name, value in given.items() if value is not None}
        convert(model.model_path, target, config.preset, **options)
        return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name)


if __name__ == "__main__":
    packages = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    anything = {name: ["*"] for name in ("providers", "accelerators", "precisions")}
    packages["passes"]["MxortMXFP4"] = {f"supported_{key}": value for key, value in anything.items()} | {
        "module_path": "mxort.olive.MxortMXFP4"
    }
    json.dump(packages, sys.stdout, indent=2)

#!/usr/bin/env bash
# Installs dist/*.whl in an environment of its own, without a compiler in reach, and uses it with the onnxruntime of the
# tests and each that there is in build/ort.
# Usage: wheel_test.sh [PYTHON...]   as wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."
pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=(.venv/bin/python)
pinned=$(sed -n 's/^  "\(onnxruntime==.*\)",$/\1/p' pyproject.toml)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export ORT_DISABLE_TELEMETRY=1
for python in "${pythons[@]}"; do
  tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
  "$python" -m venv "$scratch/$tag"
  installed=$scratch/$tag/bin/python
  "$installed" -m pip --disable-pip-version-check -q install "$(echo dist/*-"$tag"-*.whl)" "$pinned"
  for onnxruntime in "" build/ort/*; do
    # Those of build/ort are for the environment's own Python.
    [ -z "$onnxruntime" ] || [ "$python" = .venv/bin/python ] || continue
    mkdir "$scratch/run"
    # From a folder of its own, -I keeps the source tree out; an onnxruntime given comes first.
    (cd "$scratch/run" && env -i HOME="$scratch" PATH="$scratch/$tag/bin" ORT_DISABLE_TELEMETRY=1 \
      PYTHONPATH="${onnxruntime:+$OLDPWD/$onnxruntime}" "$installed" "$OLDPWD/tests/wheel/installed.py" "$scratch/run")
    rm -r "$scratch/run"
  done
done

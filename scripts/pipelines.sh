#!/usr/bin/env bash
# An environment for each pipeline, with the wheel and the versions of tests/pipelines/NAME.txt, and its tests in it.
# Usage: pipelines.sh NAME...
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(echo dist/mxort-*-"$(.venv/bin/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"-*.whl)
export ORT_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OLIVE_DISABLE_TELEMETRY=1 RAY_USAGE_STATS_ENABLED=0
for name in "$@"; do
  folder=build/pipelines/$name
  if ! cmp -s "tests/pipelines/$name.txt" "$folder/requirements.txt"; then
    echo "pipelines: environment for $name"
    .venv/bin/python -m venv --clear "$folder"
    "$folder/bin/python" -m pip --disable-pip-version-check -q install -r "tests/pipelines/$name.txt"
    cp "tests/pipelines/$name.txt" "$folder/requirements.txt" # last: it says that all is there
  fi
  "$folder/bin/python" -m pip --disable-pip-version-check -q install "$wheel"
  "$folder/bin/python" -m pip --disable-pip-version-check -q install --force-reinstall --no-deps "$wheel"
  # pytest's own program, which does not put the source tree before the wheel.
  MXORT_PIPELINE=$name "$folder/bin/pytest" -p no:cacheprovider -o pythonpath=tests/support \
    "tests/pipelines/test_$name.py"
done

#!/usr/bin/env bash
# Builds dist/mxort-*-manylinux_2_28_x86_64.whl: for glibc 2.28 and later, without a need of the machine's libstdc++, the
# GPU kernels inside. For the environment's own interpreter nothing is compiled again: build/cmake has it (setup.sh).
# Usage: wheel.sh [PYTHON...]   interpreters to build for (default: the environment's); each needs its headers
set -euo pipefail
cd "$(dirname "$0")/.."
own=.venv/bin/python
pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=($own)

rm -rf build/wheels dist
for python in "${pythons[@]}"; do
  tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
  folder=build/cmake
  options=(-C cmake.define.CMAKE_TOOLCHAIN_FILE="$PWD/cmake/zig.cmake" -C cmake.define.MXORT_WERROR=ON)
  if [ "$python" != $own ]; then
    folder=build/wheel-cmake-$tag
    if compgen -G 'build/cmake/hip/*.co' >/dev/null; then
      options+=(-C cmake.define.MXORT_HIP_OBJECTS="$PWD/build/cmake/hip")
    fi
    environment=build/wheel-$tag
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    "$environment/bin/python" -m pip --disable-pip-version-check -q install 'scikit-build-core>=0.11' 'pybind11>=3.0'
    python=$environment/bin/python
  fi
  echo "wheel: $tag"
  PATH=$PWD/.venv/bin:$PATH "$python" -m pip --disable-pip-version-check -q wheel . \
    --no-build-isolation --no-deps -w build/wheels -C build-dir="$folder" "${options[@]}"
done
for wheel in build/wheels/*.whl; do
  PATH=$PWD/.venv/bin:$PATH $own -m auditwheel repair --plat manylinux_2_28_x86_64 -w dist "$wheel"
done
ls -l dist

#!/usr/bin/env bash
# Builds dist/mxort-*-manylinux_2_28_x86_64.whl: for glibc 2.28 and later, without a need of the machine's libstdc++, the
# GPU kernels inside. The compiler is the clang of the ziglang package, so that the build is the same everywhere; its
# warnings are errors.
# Usage: wheel.sh [PYTHON...]   interpreters to build for (default: the environment's); each needs its headers
set -euo pipefail
cd "$(dirname "$0")/.."
platform=manylinux_2_28_x86_64
pythons=("$@")
[ ${#pythons[@]} -gt 0 ] || pythons=(.venv/bin/python)

tools=$PWD/build/wheel-tools
mkdir -p "$tools"
for tool in cc c++ ar ranlib; do
  target=""
  case $tool in cc | c++) target="-target x86_64-linux-gnu.2.28" ;; esac
  printf '#!/bin/sh\nexec %s -m ziglang %s %s "$@"\n' "$PWD/.venv/bin/python" "$tool" "$target" >"$tools/$tool"
  chmod +x "$tools/$tool"
done

rm -rf build/wheels dist
for python in "${pythons[@]}"; do
  tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
  environment=build/wheel-$tag
  [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
  "$environment/bin/python" -m pip --disable-pip-version-check -q install 'scikit-build-core>=0.11' 'pybind11>=3.0'
  echo "wheel: $tag"
  PATH=$PWD/.venv/bin:$PATH "$environment/bin/python" -m pip --disable-pip-version-check -q wheel . \
    --no-build-isolation --no-deps -w build/wheels -C build-dir="build/wheel-cmake-$tag" \
    -C cmake.define.CMAKE_C_COMPILER="$tools/cc" -C cmake.define.CMAKE_CXX_COMPILER="$tools/c++" \
    -C cmake.define.CMAKE_ASM_COMPILER="$tools/cc" -C cmake.define.CMAKE_AR="$tools/ar" \
    -C cmake.define.CMAKE_RANLIB="$tools/ranlib" -C cmake.define.MXORT_WERROR=ON \
    ${MXORT_HIP_OBJECTS:+-C cmake.define.MXORT_HIP_OBJECTS="$MXORT_HIP_OBJECTS"}
done
for wheel in build/wheels/*.whl; do
  PATH=$PWD/.venv/bin:$PATH .venv/bin/auditwheel repair --plat $platform -w dist "$wheel"
done
ls -l dist

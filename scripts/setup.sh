#!/usr/bin/env bash
# Makes a fresh machine ready to build and test: system packages (where it may), a virtual environment, the package.
# Usage: setup.sh [EXTRA...]   extras of pyproject.toml to install beside the package itself
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$(IFS=,; echo "${*:-dev}")

missing=()
command -v g++ >/dev/null || missing+=(g++)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
python3 -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
  missing+=(python3-dev)
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  if ! { command -v apt-get >/dev/null && $sudo apt-get update -qq && $sudo apt-get install -y -qq "${missing[@]}"; }; then
    echo "setup: cannot install ${missing[*]}; install them and run this again" >&2
    exit 1
  fi
fi
# The compiler for GPU kernels, with which the tests also assemble and disassemble. Without it the library is built, and
# says so, without GPU kernels.
if ! command -v clang-22 >/dev/null && ! [ -x "${ROCM_PATH:-/opt/rocm}/bin/amdclang++" ] && command -v apt-get >/dev/null &&
  [ "$(id -u)" = 0 ]; then
  echo "setup: clang-22, lld-22 and llvm-22 for the GPU kernels"
  apt-get update -qq
  apt-get install -y -qq clang-22 lld-22 llvm-22 >/dev/null || echo "setup: not available here; no GPU kernels" >&2
fi
if ! .venv/bin/python -c 'import sys' 2>/dev/null; then
  echo "setup: virtual environment .venv"
  python3 -m venv --clear .venv
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }
if ! [ -x .venv/bin/cmake ] || ! .venv/bin/python -c 'import scikit_build_core, pybind11, ninja, ziglang' 2>/dev/null; then
  pip install 'scikit-build-core>=0.11' 'pybind11>=3.0' 'cmake>=3.24' ninja \
    "$(sed -n 's/^  "\(ziglang==.*\)",$/\1/p' pyproject.toml)"
fi
echo "setup: mxort[$extras] (compiles the library)"
PATH=$PWD/.venv/bin:$PATH pip install --no-build-isolation -e ".[$extras]" \
  -C cmake.define.CMAKE_TOOLCHAIN_FILE="$PWD/cmake/zig.cmake" -C cmake.define.MXORT_WERROR=ON

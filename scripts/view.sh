#!/usr/bin/env bash
# Makes build/view: the package as it is installed, of symbolic links, for tools that read folders (mypy, import-linter).
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/view
mkdir -p build/view/mxort
ln -s ../../tools build/view/tools
ln -s ../../samples build/view/samples
for entry in mxort/*; do
  [ "$(basename "$entry")" = __pycache__ ] || ln -s "../../../$entry" "build/view/$entry"
done
[ -e mxort/converters ] || ln -s ../../../converters build/view/mxort/converters

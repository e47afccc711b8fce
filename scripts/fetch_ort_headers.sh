#!/usr/bin/env bash
# Fetches ONNX Runtime's C/C++ headers (Debian's libonnxruntime-dev) into DEST without installing anything.
# Usage: fetch_ort_headers.sh DEST [SUITE]
#   SUITE experimental (default, newest API) or trixie (1.21, the compatibility gate for onnxruntime 1.22).
# The mirror and its key come from this machine's own apt configuration; nothing is written outside DEST.
set -euo pipefail
dest=${1:?usage: fetch_ort_headers.sh DEST [SUITE]}
suite=${2:-experimental}
include=$dest/usr/include/onnxruntime
[ -f "$include/onnxruntime_c_api.h" ] && { echo "$include"; exit 0; }

fail() {
  echo "fetch_ort_headers: $1; pass -DORT_INCLUDE_DIR=<folder with onnxruntime_c_api.h> instead (the headers are in onnxruntime's release archives)" >&2
  exit 1
}
command -v apt-get >/dev/null || fail "no apt-get on this machine"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m1 '/debian/\?$') ||
  fail "apt names no Debian mirror (is this Debian, and has 'apt-get update' run?)"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || fail "$keyring is missing (package debian-archive-keyring)"

mkdir -p "$(dirname "$dest")"
dest=$(cd "$(dirname "$dest")" && pwd)/$(basename "$dest") # apt takes relative paths as relative to /etc/apt
include=$dest/usr/include/onnxruntime
tmp=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/apt/parts" "$tmp/apt/lists/partial" "$tmp/apt/cache/archives/partial" "$tmp/root"
echo "deb [signed-by=$keyring] $mirror $suite main" > "$tmp/apt/sources.list"
options=(-o "Dir::Etc::sourcelist=$tmp/apt/sources.list" -o "Dir::Etc::sourceparts=$tmp/apt/parts" -o "Dir::State::lists=$tmp/apt/lists"
         -o "Dir::Cache=$tmp/apt/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3 -qq)
apt-get "${options[@]}" update >&2 || fail "apt-get update of suite $suite failed"
version=$(apt-cache "${options[@]}" madison libonnxruntime-dev | awk 'NR == 1 { print $3 }')
[ -n "$version" ] || fail "suite $suite has no libonnxruntime-dev"
(cd "$tmp" && apt-get "${options[@]}" download "libonnxruntime-dev=$version" >&2) || fail "download of libonnxruntime-dev=$version failed"
dpkg -x "$tmp"/libonnxruntime-dev_*.deb "$tmp/root"
rm -rf "$dest"
mv "$tmp/root" "$dest"
echo "$include"

"""cmake/OrtHeaders.cmake: ONNX Runtime's headers by content, from whatever place has them."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CMAKE = Path(sys.executable).with_name("cmake")
FOLDER = Path(__file__).parents[1] / "cmake"
HEADERS = {"onnxruntime_c_api.h": b"#define ORT_API_VERSION 9\n", "onnxruntime_float16.h": b"// 16 bits\n"}
CHANGED = HEADERS | {"onnxruntime_float16.h": b"// 17 bits\n"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tgz(headers: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in headers.items():
            member = tarfile.TarInfo(f"onnxruntime-9/include/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def deb(headers: dict[str, bytes]) -> bytes:
    """An ar archive of three members, as deb(5) has it."""
    parts = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", tgz({}, "w:xz")),
        ("data.tar.xz", tgz(headers, "w:xz")),
    ]
    packed = b"!<arch>\n"
    for name, data in parts:
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        packed += data + b"\n" * (len(data) % 2)
    return packed


@dataclass
class Server:
    url: str
    files: dict[str, bytes]
    asked: list[str]

    def serve(self, name: str, data: bytes) -> str:
        self.files[f"/{name}"] = data
        return f"{self.url}/{name}"


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            data = made.files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        made = Server(f"http://127.0.0.1:{httpd.server_address[1]}", {}, [])
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield made
        httpd.shutdown()


class Build:
    """A build of its own whose table knows version 9 of HEADERS, and the archives given."""

    def __init__(self, root: Path, archives: list[tuple[str, str]]) -> None:
        self.program = root / "cmake" / "OrtHeaders.cmake"
        self.cache = root / "cache"
        self.program.parent.mkdir()
        shutil.copy(FOLDER / "OrtHeaders.cmake", self.program)
        rows = [f"header 9 {sha256(data)} {name}" for name, data in HEADERS.items()]
        rows += [f"archive 9 {digest} {url}" for digest, url in archives]
        (root / "cmake" / "ort_headers.txt").write_text("\n".join(rows) + "\n")

    def run(self, folder: Path | str = "") -> subprocess.CompletedProcess[str]:
        command = [
            CMAKE, "-DVERSION=9", f"-DMXORT_HEADER_CACHE={self.cache}", f"-DMXORT_ORT_HEADERS={folder}",
            "-P", self.program,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True)

    def taken(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.cache / "9").iterdir()}

    def succeeds(self, folder: Path | str = "") -> None:
        done = self.run(folder)
        assert done.returncode == 0, done.stderr
        assert self.taken() == HEADERS

    def fails(self, folder: Path | str = "") -> str:
        """The one message, on one line."""
        done = self.run(folder)
        assert done.returncode != 0
        assert not (self.cache / "9").exists()
        assert done.stderr.count("CMake Error") == 1
        assert "-DMXORT_ORT_HEADERS=<folder>" in done.stderr
        return re.sub(r"\s+", " ", done.stderr)


def write(folder: Path, headers: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in headers.items():
        (folder / name).write_bytes(data)
    return folder


def test_the_folder_given(tmp_path: Path) -> None:
    Build(tmp_path, []).succeeds(write(tmp_path / "given", HEADERS | {"another.h": b""}))


def test_the_second_of_two_folders(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first", CHANGED), write(tmp_path / "second", HEADERS)
    Build(tmp_path, []).succeeds(f"{first};{second}")


def test_a_folder_with_another_header_is_an_error(tmp_path: Path, server: Server) -> None:
    """Although the network has the right one: who gives a folder means it."""
    build = Build(tmp_path, [("-", server.serve("a.tgz", tgz(HEADERS)))])
    given = write(tmp_path / "given", CHANGED)
    name = "onnxruntime_float16.h"
    message = build.fails(given)
    assert f"{given / name}: got SHA-256 {sha256(CHANGED[name])}, expected {sha256(HEADERS[name])}" in message
    assert not server.asked


def test_a_folder_without_a_header_is_an_error(tmp_path: Path) -> None:
    given = write(tmp_path / "given", {"onnxruntime_c_api.h": HEADERS["onnxruntime_c_api.h"]})
    assert f"{given}/onnxruntime_float16.h: no such file" in Build(tmp_path, []).fails(given)


@pytest.mark.parametrize("pack", [tgz, deb], ids=["tgz", "deb"])
@pytest.mark.parametrize("known", [True, False], ids=["hash", "no-hash"])
def test_an_archive(pack, known: bool, tmp_path: Path, server: Server) -> None:  # type: ignore[no-untyped-def]
    data = pack(HEADERS)
    Build(tmp_path, [(sha256(data) if known else "-", server.serve("archive", data))]).succeeds()


def test_what_was_downloaded_once_is_kept(tmp_path: Path, server: Server) -> None:
    build = Build(tmp_path, [("-", server.serve("a.tgz", tgz(HEADERS)))])
    build.succeeds()
    build.succeeds()
    assert server.asked == ["/a.tgz"]


def test_a_damaged_copy_is_replaced(tmp_path: Path, server: Server) -> None:
    build = Build(tmp_path, [("-", server.serve("a.tgz", tgz(HEADERS)))])
    build.succeeds()
    (build.cache / "9" / "onnxruntime_float16.h").write_bytes(b"// 16 bitz\n")
    build.succeeds()


def test_places_are_tried_in_order(tmp_path: Path, server: Server) -> None:
    right = tgz(HEADERS)
    archives = [
        ("-", f"{server.url}/gone.deb"),
        (sha256(right), server.serve("other.tgz", tgz(CHANGED))),
        ("-", server.serve("page.tgz", b"<html>please log in</html>")),
        ("-", server.serve("changed.tgz", tgz(CHANGED))),
        (sha256(right), server.serve("right.tgz", right)),
        ("-", server.serve("late.tgz", right)),
    ]
    Build(tmp_path, archives).succeeds()
    assert server.asked == ["/gone.deb", "/other.tgz", "/page.tgz", "/changed.tgz", "/right.tgz"]


def test_a_pool_that_changed_is_one_error_with_every_place(tmp_path: Path, server: Server) -> None:
    changed = tgz(CHANGED)
    archives = [
        ("-", f"{server.url}/gone.deb"),
        (sha256(b"right"), server.serve("other.tgz", changed)),
        ("-", server.serve("page.tgz", b"<html>please log in</html>")),
        ("-", server.serve("changed.tgz", changed)),
    ]
    message = Build(tmp_path, archives).fails()
    name = "onnxruntime_float16.h"
    assert f"{server.url}/gone.deb: " in message
    assert f"{server.url}/other.tgz: got SHA-256 {sha256(changed)}, expected {sha256(b'right')}" in message
    assert f"{server.url}/page.tgz: not an archive with onnxruntime_c_api.h" in message
    expected = f"got SHA-256 {sha256(CHANGED[name])}, expected {sha256(HEADERS[name])}"
    assert f"{server.url}/changed.tgz: {name}: {expected}" in message


def test_the_projects_table_covers_what_the_headers_include() -> None:
    """Each header of the table is in the build's cache, and includes no other of onnxruntime's."""
    rows = [line.split() for line in (FOLDER / "ort_headers.txt").read_text().splitlines() if line[0] != "#"]
    versions = {row[1] for row in rows}
    assert versions == {"1.21.0", "1.27.1"}
    for version in versions:
        names = {row[3]: row[2] for row in rows if row[:2] == ["header", version]}
        hosts = {row[3].split("/")[2] for row in rows if row[:2] == ["archive", version] and "//" in row[3]}
        assert len(hosts) >= 2  # beside Debian's mirrors
        for name, digest in names.items():
            data = (FOLDER.parent / "build" / "ort-headers" / version / name).read_bytes()
            assert sha256(data) == digest
            assert set(re.findall(r'#include "(onnxruntime_.*)"', data.decode())) <= names.keys()

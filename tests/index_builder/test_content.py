"""Reading originals: byte ranges, and everything that is not a plain file."""

import hashlib
import io
import os
import socket
import subprocess
import sys

import pytest

from index_builder import content
from index_builder.content import (
    ContentCheck,
    ContentError,
    Location,
    Stamp,
    file_uri,
    open_location,
    path_of_uri,
    read_location,
)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "s.tar"
    path.write_bytes(bytes(range(100)))
    return path


def reason_of(location: Location) -> str:
    with pytest.raises(ContentError) as caught:
        read_location(location)
    assert str(caught.value)
    return caught.value.reason


def test_read_location_reads_just_the_member(shard):
    data, stamp = read_location(Location(str(shard), 10, 5))
    assert data == bytes([10, 11, 12, 13, 14])
    assert stamp.size_bytes == 5
    assert stamp.mtime_s == shard.stat().st_mtime


def test_open_location_seeks_within_the_member_only(shard):
    handle, _ = open_location(Location(str(shard), 10, 5))
    with handle:
        assert handle.seek(-2, io.SEEK_END) == 3
        assert handle.read() == bytes([13, 14])
        assert handle.read() == b""
        assert handle.seek(1) == 1
        assert handle.read(2) == bytes([11, 12])
        assert handle.seek(50) == 50
        assert handle.read(1) == b""
        with pytest.raises(ValueError, match="cannot seek"):
            handle.seek(-1)


def test_read_location_names_what_is_wrong(tmp_path, shard):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "sock.jpg"))
        assert reason_of(Location(str(tmp_path / "sock.jpg"))) == "not_a_file"
    assert reason_of(Location(str(tmp_path / "fifo.jpg"))) == "not_a_file"
    assert reason_of(Location(str(tmp_path / "folder.jpg"))) == "not_a_file"
    assert reason_of(Location(str(tmp_path / "broken.jpg"))) == "broken_symlink"
    assert reason_of(Location(str(tmp_path / "self.jpg"))) == "symlink_loop"
    assert reason_of(Location(str(tmp_path / "gone.jpg"))) == "missing"
    assert reason_of(Location("/dev/zero")) == "not_a_file"
    assert reason_of(Location(str(shard), 96, 5)) == "truncated"


def test_read_location_stays_inside_its_root(tmp_path, shard):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out.jpg").symlink_to(shard)
    (root / "in.jpg").write_bytes(b"in")
    (root / "also.jpg").symlink_to(root / "in.jpg")
    assert reason_of(Location(str(root / "out.jpg"), root=str(root))) == "symlink_outside"
    assert reason_of(Location(str(root / "../s.tar"), root=str(root))) == "symlink_outside"
    assert read_location(Location(str(root / "also.jpg"), root=str(root)))[0] == b"in"


def test_read_location_reports_a_file_without_permission(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    path.chmod(0)
    tmp_path.chmod(0o755)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        assert reason_of(Location(str(path))) == "unreadable"
    finally:
        if was_root:
            os.seteuid(0)


def test_file_uri_round_trips_any_name(tmp_path):
    for name in ("a b#c?.jpg", "100%25.jpg", "日本.jpg", os.fsdecode(b"\xff\xfe.jpg")):
        path = str(tmp_path / name)
        assert path_of_uri(file_uri(path)) == path
        assert path_of_uri(file_uri(path, "m#1.jpg")) == path
    with pytest.raises(ContentError, match="only file://"):
        path_of_uri("s3://bucket/x.jpg")


def test_workers_start_without_what_only_urls_need():
    heavy = "{'fsspec', 'aiohttp', 'numpy', 'torch', 'pyarrow', 'PIL'}"
    code = f"import sys, index_builder.content; sys.exit(sorted({heavy} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_read_location_reports_a_name_that_no_file_can_have(tmp_path):
    assert reason_of(Location(str(tmp_path / "a\0b"))) == "missing"
    assert reason_of(Location(str(tmp_path / "a\0b"), root=str(tmp_path))) == "missing"


def test_a_check_remembers_so_many_originals_and_no_more(monkeypatch):
    monkeypatch.setattr(content, "_MAX_REMEMBERED", 3)
    check = ContentCheck()
    digest = hashlib.sha256(b"x").hexdigest()
    for number in range(10):
        for _ in range(2):
            file = io.BytesIO(b"x")
            assert check.is_same(Location(str(number)), file, Stamp(1, 5.0), 1, digest)
            assert file.tell() == 0
        assert len(check) <= 3
    place = Location("0")
    assert not check.is_same(place, io.BytesIO(b"y"), Stamp(1, 6.0), 1, digest)
    for data in (b"x", b"y"):  # a place that does not tell times is read each time
        assert check.is_same(place, io.BytesIO(data), Stamp(1, 0.0), 1, digest) == (data == b"x")


def test_a_check_reads_a_file_once_for_all_that_is_of_it():
    class Counted(io.BytesIO):
        num_read = 0

        def read(self, *size: int) -> bytes:
            self.num_read += 1
            return super().read(*size)

    check, file, place = ContentCheck(), Counted(b"x"), Location("film.mp4")
    right, wrong = (hashlib.sha256(data).hexdigest() for data in (b"x", b"y"))
    assert check.is_same(place, file, Stamp(1, 5.0), 1, right)
    num_read = file.num_read
    assert num_read > 0
    assert check.is_same(place, file, Stamp(1, 5.0), 1, right)
    assert not check.is_same(place, file, Stamp(1, 5.0), 1, wrong)
    assert file.num_read == num_read

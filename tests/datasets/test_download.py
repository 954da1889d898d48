"""Downloads from a server that breaks off, does not know Range, or sends something else."""

from __future__ import annotations

import hashlib
import io
import shutil
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from rlbook.datasets.download import DownloadError, File, exclusive, fetch, make_folder
from rlbook.errors import ConfigError

BODY = bytes(range(256)) * 40  # 10,240 bytes


@pytest.fixture
def file(server) -> File:
    server.files["/data/a%20b.bin"] = BODY
    return File(server.url + "/data/a%20b.bin")


def test_a_file_is_fetched_once(server, file, tmp_path, capsys):
    path = fetch(file, tmp_path / "new")
    assert path == tmp_path / "new" / "a b.bin"
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["a b.bin"]  # no .part is left
    assert fetch(file, tmp_path / "new") == path
    assert server.asked == [None]
    assert capsys.readouterr().err == ""  # quiet where nobody watches


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, file, tmp_path):
    server.cuts = [1000, 500]
    assert fetch(file, tmp_path, wait=0).read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_later_run_goes_on_where_the_last_one_stopped(server, file, tmp_path):
    server.cuts = [1000]
    with pytest.raises(DownloadError, match="the connection broke off"):
        fetch(file, tmp_path, retries=0)
    assert (tmp_path / "a b.bin.part").read_bytes() == BODY[:1000]  # nothing is lost
    assert not (tmp_path / "a b.bin").exists()
    assert fetch(file, tmp_path).read_bytes() == BODY
    assert server.asked[-1] == "bytes=1000-"


def test_a_server_that_cannot_continue_begins_again(server, file, tmp_path):
    server.ranges, server.cuts = False, [1000]
    assert fetch(file, tmp_path, wait=0).read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("extra", [b"", b"too much"])
def test_a_part_that_is_whole_already_is_taken_and_a_longer_one_is_not(server, file, tmp_path, extra):
    (tmp_path / "a b.bin.part").write_bytes(BODY + extra)
    assert fetch(file, tmp_path, wait=0).read_bytes() == BODY
    assert len(server.asked) == (2 if extra else 1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"sha256": "0" * 64}, "of sha256 0000"),
        ({"md5": "0" * 32}, "of md5 0000"),
        ({"size": 99}, "of 99 bytes; got 10,240 bytes"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_and_deleted(server, file, tmp_path, wrong, message):
    with pytest.raises(DownloadError, match=message):
        fetch(File(file.url, **wrong), tmp_path)
    assert not list(tmp_path.glob("*.bin*"))


def test_the_right_checksums_pass(file, tmp_path):
    right = {"sha256": hashlib.sha256(BODY).hexdigest(), "md5": hashlib.md5(BODY).hexdigest().upper()}
    assert fetch(File(file.url, "sub/name.bin", len(BODY), **right), tmp_path) == tmp_path / "sub" / "name.bin"


def test_not_found_is_said_at_once_and_tells_what_to_do_by_hand(server, tmp_path):
    with pytest.raises(DownloadError, match="HTTP 404") as caught:
        fetch(File(server.url + "/absent.npz"), tmp_path)
    assert len(server.asked) == 1
    for told in (server.url + "/absent.npz", str(tmp_path / "absent.npz"), "RLBOOK_DATA"):
        assert told in str(caught.value)


def test_a_busy_server_is_asked_again(server, file, tmp_path):
    server.statuses = [503, 429]
    assert fetch(file, tmp_path, wait=0).read_bytes() == BODY


def test_without_network_the_error_explains_and_a_file_put_there_by_hand_is_used(tmp_path):
    with socket.socket() as taken:  # nobody listens on this port
        taken.bind(("127.0.0.1", 0))
        file = File(f"http://127.0.0.1:{taken.getsockname()[1]}/x.bin")
        with pytest.raises(DownloadError, match=r"refused.*put it at"):
            fetch(file, tmp_path, retries=1, wait=0)
        (tmp_path / "x.bin").write_bytes(b"by hand")
        assert fetch(file, tmp_path).read_bytes() == b"by hand"


def test_a_connection_that_always_breaks_is_given_up(server, file, tmp_path):
    server.cuts = [10, 10, 10]
    with pytest.raises(DownloadError, match="broke off"):
        fetch(file, tmp_path, retries=2, wait=0)
    assert (tmp_path / "a b.bin.part").read_bytes() == BODY[:30]


def test_too_small_a_disk_is_noticed_first(file, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_239))
    with pytest.raises(ConfigError, match=r"free for 0\.00 GB"):
        fetch(file, tmp_path)


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"one that can be written to.*RLBOOK_DATA"):
        make_folder(tmp_path / "file" / "below")


def test_a_terminal_sees_a_bar(file, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = iter(range(1000))
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setattr("rlbook.datasets.download.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    fetch(file, tmp_path)
    assert "a b.bin [########################] 0 MB of 0 MB" in screen.getvalue()


def test_one_at_a_time(tmp_path, monkeypatch):
    """The second waits until the first is through: it says so, and only then goes on."""
    order, waits = [], threading.Event()
    told = SimpleNamespace(write=lambda text: (order.append(text[:15]), waits.set()))
    monkeypatch.setattr(sys, "stderr", told)

    def second() -> None:
        with exclusive(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(tmp_path / "lock"):
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join()
    assert order == ["Another process", "first", "second"]

# SPDX-License-Identifier: Apache-2.0
"""Results on disk: whole or not at all, and never in the place of a device."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tvhil.files import write_whole


def test_a_file_appears_with_its_folders_and_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a" / "b.json"
    for content in (b"first", b"2nd"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_a_file_at_once_leave_one_of_theirs_whole(tmp_path):
    path, start = tmp_path / "a.json", threading.Barrier(4)
    contents = [bytes([number]) * 100_000 for number in range(4)]

    def write(content):
        start.wait(10)
        for _ in range(5):
            write_whole(path, content)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_whole(path, b"content")
    reader.join(10)
    assert read == [b"content"]
    assert path.is_fifo()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"

# SPDX-License-Identifier: Apache-2.0
"""The journal keeps every finished row, whatever happens to the process or the disk."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvhil.errors import UsageError
from tvhil.evaluation.journal import Journal, JournalError, decode_row, encode_row, read_journal

HEADER = {"model": "m", "board": "native", "seed": 0}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def rows(n):
    return [{"image": i, "value": 'é\n"x"' * i} for i in range(n)]


def write(path, n=5):
    with Journal.create(path, HEADER) as journal:
        for row in rows(n):
            journal.append(row)
    return path


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=5))
def test_a_row_comes_back_as_it_was_written(row):
    row.pop("crc", None)
    line = encode_row(row)
    assert line.count(b"\n") == 1
    assert decode_row(line) == row


@given(st.data())
def test_a_row_with_any_flipped_bit_is_recognized(data):
    line = bytearray(encode_row({"image": 3, "latency": 12.5, "id": "x"}))
    bit = data.draw(st.integers(0, 8 * (len(line) - 1) - 1))
    line[bit // 8] ^= 1 << bit % 8
    assert decode_row(bytes(line)) is None


def test_every_cut_of_the_last_row_is_resumed_without_it(tmp_path):
    whole = write(tmp_path / "whole.jsonl").read_bytes()
    start_of_last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(start_of_last, len(whole)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        with Journal.resume(path, HEADER) as journal:
            assert list(journal.rows()) == rows(4)
            journal.append(rows(5)[4])
        assert path.read_bytes() == whole


def test_every_cut_of_the_header_starts_over(tmp_path):
    whole = write(tmp_path / "whole.jsonl", 0).read_bytes()
    for cut in range(len(whole)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:cut])
        Journal.resume(path, HEADER).close()
        assert path.read_bytes() == whole


def test_a_damaged_row_in_the_middle_is_named_by_its_line(tmp_path):
    path = write(tmp_path / "j.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"image":2', b'"image":9')
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"line 4 of .* is damaged"):
        Journal.resume(path, HEADER)


def test_resuming_a_journal_that_is_not_there_creates_it(tmp_path):
    path = tmp_path / "new" / "j.jsonl"
    Journal.resume(path, HEADER).close()
    header, found = read_journal(path)
    assert header["seed"] == 0
    assert list(found) == []


@pytest.mark.parametrize(("key", "value"), [("model", "other"), ("board", "qemu"), ("seed", 1), ("extra", [1, 2])])
def test_a_journal_of_another_evaluation_is_refused_naming_what_changed(tmp_path, key, value):
    path = write(tmp_path / "j.jsonl")
    before = path.read_bytes()
    with pytest.raises(JournalError, match=f"its {key} is"):
        Journal.resume(path, {**HEADER, key: value})
    assert path.read_bytes() == before


def test_creating_over_a_journal_needs_overwrite(tmp_path):
    path = write(tmp_path / "j.jsonl")
    with pytest.raises(UsageError, match="--resume"):
        Journal.create(path, HEADER)
    assert len(list(read_journal(path)[1])) == 5
    Journal.create(path, HEADER, overwrite=True).close()
    assert list(read_journal(path)[1]) == []


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "thesis.txt"
    path.write_text("do not truncate me")
    with pytest.raises(JournalError, match="no journal"):
        Journal.resume(path, HEADER)
    assert path.read_text() == "do not truncate me"


def test_a_second_process_on_the_same_journal_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal.create(path, HEADER):
        locks = Path("/proc/locks")
        who = f"process {os.getpid()}" if locks.exists() and "FLOCK" in locks.read_text() else "another process"
        code = "import sys; from pathlib import Path; from tvhil.evaluation.journal import Journal\n"
        code += f"Journal.resume(Path(sys.argv[1]), {HEADER!r})"
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert f"{who} writes" in other.stderr
    Journal.resume(path, HEADER).close()


def test_a_killed_process_loses_no_row_that_it_reported(tmp_path):
    path = tmp_path / "j.jsonl"
    code = f"""
import sys; from pathlib import Path; from tvhil.evaluation.journal import Journal
journal = Journal.create(Path(sys.argv[1]), {HEADER!r})
for i in range(10**9):
    journal.append({{"image": i}})
    print(i, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 200:
            process.send_signal(signal.SIGKILL)
            break
    reported = 200 + sum(1 for _ in process.stdout)
    process.wait()
    with Journal.resume(path, HEADER) as journal:
        found = [row["image"] for row in journal.rows()]
    assert found == list(range(len(found)))
    assert len(found) > reported


def test_a_full_disk_keeps_the_rows_before_and_nothing_of_the_one_that_did_not_fit(tmp_path, monkeypatch):
    path = write(tmp_path / "j.jsonl", 2)
    before = path.read_bytes()
    journal = Journal.resume(path, HEADER)
    real, calls = os.write, []

    def short_write(descriptor, content):
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_write)
        with pytest.raises(OSError, match="No space left"):
            journal.append({"image": 2})
    assert path.read_bytes() == before
    journal.append({"image": 2})  # somebody freed some space
    journal.close()
    assert [row["image"] for row in read_journal(path)[1]] == [0, 1, 2]


def test_a_row_that_json_cannot_hold_is_an_error_and_not_a_damaged_file(tmp_path):
    with Journal.create(tmp_path / "j.jsonl", HEADER) as journal:
        with pytest.raises(ValueError, match="JSON"):
            journal.append({"latency": float("nan")})
        journal.append({"image": 0})
        assert list(journal.rows()) == [{"image": 0}]

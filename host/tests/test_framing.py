# SPDX-License-Identifier: Apache-2.0
"""Frames: round trips, damage, and the same bytes in Python and in C."""

from __future__ import annotations

import ctypes
import random
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_boards import SANITIZE, build, environment, server_library, tiny_model

from tvhil.link import framing
from tvhil.link.framing import Decoder, Frame, cobs_decode, cobs_encode

MAX_PAYLOAD = 1032  # of the C build

# Bytes as they occur: mostly zeros, no zeros, and runs around the length of a COBS block.
payloads = st.one_of(
    st.binary(max_size=MAX_PAYLOAD),
    st.lists(st.sampled_from([b"\0", b"\1", b"\xff"]), max_size=600).map(b"".join),
    st.builds(
        lambda runs: b"".join(b"\x55" * n + b"\0" * z for n, z in runs)[:MAX_PAYLOAD],
        st.lists(st.tuples(st.integers(250, 260), st.integers(0, 2)), max_size=4),
    ),
)
frames = st.builds(Frame, st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), payloads)


@given(payloads)
def test_stuffed_bytes_hold_no_zero_grow_by_one_in_254_and_come_back(data: bytes) -> None:
    stuffed = cobs_encode(data)
    assert 0 not in stuffed
    assert len(stuffed) <= len(data) + 1 + len(data) // 254
    assert cobs_decode(stuffed) == data


@pytest.mark.parametrize(
    ("data", "stuffed"),
    [
        (b"", b"\x01"),
        (b"\0", b"\x01\x01"),
        (b"\x11\x22\0\x33", b"\x03\x11\x22\x02\x33"),
        (b"\1" * 254, b"\xff" + b"\1" * 254),
        (b"\1" * 255, b"\xff" + b"\1" * 254 + b"\x02\1"),
        (b"\1" * 254 + b"\0", b"\xff" + b"\1" * 254 + b"\x01\x01"),
    ],
)
def test_stuffing_agrees_with_the_published_examples(data: bytes, stuffed: bytes) -> None:
    assert cobs_encode(data) == stuffed
    assert cobs_decode(stuffed) == data


@given(st.lists(frames, max_size=5), st.randoms(use_true_random=False))
def test_frames_come_back_however_the_stream_is_cut(sent: list[Frame], rng: random.Random) -> None:
    line = b"".join(map(framing.encode, sent))
    decoder, received = Decoder(), []
    while line:
        cut = rng.randint(1, len(line))
        received += decoder.feed(line[:cut])
        line = line[cut:]
    assert received == sent


@given(frames, st.data())
def test_a_flipped_bit_never_makes_another_frame_and_the_next_frame_gets_through(
    frame: Frame, data: st.DataObject
) -> None:
    line = bytearray(framing.encode(frame))
    line[data.draw(st.integers(1, len(line) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    decoder = Decoder()
    assert [f for f in decoder.feed(bytes(line)) if f is not None] == []
    assert decoder.feed(framing.encode(frame)) == [frame]


@given(st.binary(max_size=3000), frames)
def test_after_any_garbage_the_next_frame_gets_through(garbage: bytes, frame: Frame) -> None:
    decoder = Decoder()
    decoder.feed(garbage)
    assert decoder.feed(framing.encode(frame))[-1] == frame


def test_an_endless_frame_is_one_bad_frame_and_takes_no_memory() -> None:
    decoder = Decoder(limit_payload=1024)
    for _ in range(1000):
        assert decoder.feed(b"\x01" * 1000) == []
    assert len(decoder._rest) < 2000
    assert decoder.feed(b"\0\0") == [None]


def test_a_frame_longer_than_the_limit_is_bad_even_when_it_is_whole() -> None:
    assert Decoder(limit_payload=256).feed(framing.encode(Frame(9, 1, 2, bytes(300)))) == [None]


def c_encode(frame: Frame) -> bytes:
    packet = ctypes.create_string_buffer(bytes(4) + frame.payload + bytes(4), len(frame.payload) + 8)
    out = ctypes.create_string_buffer(2 * len(packet) + 16)
    encode = server_library().tvit_frame_encode
    encode.restype = ctypes.c_size_t
    encode.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint8,
        ctypes.c_uint8,
        ctypes.c_uint16,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    length = encode(packet, frame.type, frame.session, frame.sequence, len(frame.payload), out)
    return out.raw[:length]


class CFrame(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint8),
        ("session", ctypes.c_uint8),
        ("sequence", ctypes.c_uint16),
        ("bytes", ctypes.c_uint32),
        ("payload", ctypes.POINTER(ctypes.c_uint8)),
    )


def c_decode(line: bytes) -> list[Frame | None]:
    decode = server_library().tvit_frame_decode
    decode.argtypes = [ctypes.c_void_p, ctypes.c_uint8, ctypes.POINTER(CFrame)]
    decoder = ctypes.create_string_buffer(server_library().link_decoder_size())
    found: list[Frame | None] = []
    for byte in line:
        frame = CFrame()
        status = decode(decoder, byte, frame)
        if status == 1:
            payload = ctypes.string_at(frame.payload, frame.bytes)
            found.append(Frame(frame.type, frame.session, frame.sequence, payload))
        elif status == 2:
            found.append(None)
    return found


@settings(deadline=None)
@given(frames)
def test_c_and_python_encode_the_same_bytes(frame: Frame) -> None:
    assert c_encode(frame) == framing.encode(frame)


@settings(deadline=None, max_examples=60)
@given(st.lists(frames, max_size=3), st.binary(max_size=200), st.randoms(use_true_random=False))
def test_c_and_python_find_the_same_frames_in_a_damaged_stream(
    sent: list[Frame], garbage: bytes, rng: random.Random
) -> None:
    line = bytearray(garbage + b"".join(map(framing.encode, sent)))
    for _ in range(rng.randint(0, 4)):
        if line:
            line[rng.randrange(len(line))] = rng.randrange(256)
    line += b"\0"
    assert c_decode(bytes(line)) == Decoder(MAX_PAYLOAD).feed(bytes(line))


def test_the_c_decoder_survives_damaged_frames_under_sanitizers() -> None:
    program = build("link-framing", ("app/framing.c", "app/crc32.c", "tests/link_framing.c"), SANITIZE)
    done = subprocess.run([program], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok")


def test_the_c_server_answers_every_malformed_request_once_under_sanitizers(tmp_path) -> None:
    kernels = ("kernels/portable/*.c", "kernels/pie/buffer_sizes.c")
    sources = ("runtime/*.c", *kernels, "app/*.c", "tests/link_board.c", "tests/link_server.c")
    model = tmp_path / "model.tvit"
    model.write_bytes(tiny_model())
    done = subprocess.run(
        [build("link-server", sources, SANITIZE), model], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("ok\n")

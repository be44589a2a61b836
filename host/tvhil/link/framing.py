# SPDX-License-Identifier: Apache-2.0
"""Frames of the link (device/PROTOCOL.md, section 1); device/app/framing.c is the same in C.

A frame is `00 COBS(packet) 00`, a packet is header, payload and CRC-32. COBS: Cheshire and Baker, "Consistent Overhead
Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

HEADER = struct.Struct("<BBH")  # type, session, sequence
CRC = struct.Struct("<I")
LIMIT_PAYLOAD = 4096
_BLOCK = 254  # most bytes behind one code byte


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        type: request, answer or event (`messages.Request`, `messages.Event`).
        session: 0 … 255, 0 for none.
        sequence: number of the request in the upper 12 bits, its attempt in the lower 4.
        payload: up to 4,096 bytes.
    """

    type: int
    session: int
    sequence: int
    payload: bytes = b""


def cobs_encode(data: bytes) -> bytes:
    """Stuff bytes so that none is zero; one byte more, and one for each 254."""
    out = bytearray()
    groups = data.split(b"\0")
    last = len(groups) - 1
    for index, group in enumerate(groups):
        at = 0
        while len(group) - at >= _BLOCK:
            out.append(_BLOCK + 1)
            out += group[at : at + _BLOCK]
            at += _BLOCK
        if index < last or at < len(group) or not group:
            out.append(len(group) - at + 1)
            out += group[at:]
    return bytes(out)


def cobs_decode(data: bytes) -> bytes | None:
    """Undo `cobs_encode` on bytes without zeros; None where a block is cut short."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        code = data[at]
        following = at + code
        if following > end or code == 0:
            return None
        out += data[at + 1 : following]
        at = following
        if code <= _BLOCK and at < end:
            out.append(0)
    return bytes(out)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame on the line, both delimiters included."""
    body = HEADER.pack(frame.type, frame.session, frame.sequence) + frame.payload
    return b"\0" + cobs_encode(body + CRC.pack(zlib.crc32(body))) + b"\0"


def decode(stuffed: bytes) -> Frame | None:
    """The frame between two delimiters; None for a bad one."""
    packet = cobs_decode(stuffed)
    if packet is None or len(packet) < HEADER.size + CRC.size:
        return None
    body = packet[: -CRC.size]
    if CRC.unpack(packet[-CRC.size :])[0] != zlib.crc32(body):
        return None
    kind, session, sequence = HEADER.unpack_from(body)
    return Frame(kind, session, sequence, body[HEADER.size :])


class Decoder:
    """Finds the frames in a stream of bytes, wherever it was cut."""

    def __init__(self, limit_payload: int = LIMIT_PAYLOAD) -> None:
        packet = HEADER.size + limit_payload + CRC.size
        self._limit = packet + packet // _BLOCK + 1
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame | None]:
        """The frames that ended in these bytes; None for each bad one."""
        *pieces, rest = (self._rest + data).split(b"\0")
        # A longer piece is bad whatever follows: one byte above the limit is enough to remember that.
        self._rest = rest[: self._limit + 1]
        return [decode(piece) if len(piece) <= self._limit else None for piece in pieces if piece]

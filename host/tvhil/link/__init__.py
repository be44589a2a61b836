# SPDX-License-Identifier: Apache-2.0
"""The link to a board: frames, messages, client and transports (device/PROTOCOL.md)."""

from tvhil.link.client import LinkClient
from tvhil.link.errors import (
    BoardFaultError,
    BoardResetError,
    LinkClosedError,
    LinkError,
    LinkTimeoutError,
    LinkVersionError,
    RemoteError,
)
from tvhil.link.messages import BoardInfo, MemoryReport, ModelInfo, RunResult, TraceRecord
from tvhil.link.session import LinkStatistics, LinkTimeouts
from tvhil.link.transports import Transport, open_transport

__all__ = [
    "BoardFaultError",
    "BoardInfo",
    "BoardResetError",
    "LinkClient",
    "LinkClosedError",
    "LinkError",
    "LinkStatistics",
    "LinkTimeoutError",
    "LinkTimeouts",
    "LinkVersionError",
    "MemoryReport",
    "ModelInfo",
    "RemoteError",
    "RunResult",
    "TraceRecord",
    "Transport",
    "open_transport",
]

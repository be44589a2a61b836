# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on a link. Everything that a repeat can mend is mended before it gets here."""

from __future__ import annotations

from tvhil.errors import BoardError, ExitCode
from tvhil.link.messages import ErrorCode, Fault


class LinkError(BoardError):
    """The link failed for good."""


class LinkTimeoutError(LinkError):
    """The board did not answer in time."""


class LinkClosedError(LinkError):
    """The port or connection is gone."""


class LinkVersionError(LinkError):
    """The board speaks another version of the protocol."""

    exit_code = ExitCode.OLD_FIRMWARE


class BoardResetError(LinkError):
    """The board restarted; its session, image and run are gone. Connect again and repeat the image."""


class BoardFaultError(LinkError):
    """The board's fault handler reported. It answers nothing but a reset from now on.

    Attributes:
        fault: cause, place and operator as the board told them.
    """

    def __init__(self, port: str, fault: Fault) -> None:
        self.fault = fault
        super().__init__(f"{port}: the firmware crashed: {fault}. Reset the board and repeat the image")


class RemoteError(LinkError):
    """The board refused a request.

    Attributes:
        code: an `ErrorCode`, or 256 + the status of the runtime.
        section: section of the model file, where the runtime refused it.
        index: record in that section, or None.
    """

    def __init__(self, port: str, request: str, code: int, text: str, section: str, index: int | None) -> None:
        self.code = code
        self.section = section
        self.index = index
        self.text = text
        place = " ".join(part for part in (section, "" if index is None or not section else str(index)) if part)
        super().__init__(f"{port}: {request} was refused: {f'{place}: ' if place else ''}{text} (code {code})")

    @property
    def runtime_status(self) -> int | None:
        """Status of the C runtime (`packing.format.Status`), or None where the link itself refused."""
        return self.code - ErrorCode.RUNTIME if self.code >= ErrorCode.RUNTIME else None

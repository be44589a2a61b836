# SPDX-License-Identifier: Apache-2.0
"""A board, running a model: built, flashed, started, connected, and ended again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvhil.boards import Board, flash, start
from tvhil.evaluation.link_device import LinkDevice
from tvhil.link import LinkClient, LinkClosedError, LinkTimeouts, RemoteError, Transport
from tvhil.link.faults import FaultyTransport
from tvhil.link.messages import Capability
from tvhil.packing.reader import TvitModel
from tvhil.prediction.memory import check_fit

BuildProgress = Callable[[int, int, str], None]


@contextmanager
def open_device(
    board: Board,
    model: TvitModel,
    *,
    port: str | None = None,
    timeouts: LinkTimeouts | None = None,
    notice: Callable[[str], None] | None = None,
    progress: BuildProgress | None = None,
    faults: Callable[[Transport], FaultyTransport] | None = None,
) -> Iterator[LinkDevice]:
    """Build, flash and start a board with a model, or connect to the one at `port`.

    Args:
        board: which one.
        model: what it should run; uploaded to a board at a port that runs another one and has RAM for it.
        port: serial device, URL or USB serial number; not needed for the only board on USB.
        timeouts: of the link.
        notice: told what people may want to know, in one line.
        progress: told of each compiled file.
        faults: puts a bad line around the board's; it is good until the board is ready.

    Raises:
        InputError: the model does not fit, with the numbers; nothing has been built or flashed then.
        MissingToolError: a compiler or emulator is not installed.
        BoardError: the board does not start or stopped answering.
    """
    check_fit(model, board.limits, board.name)
    image = flash(board, model, progress=progress) if port is None and board.start is not None else None
    with start(board, image, port) as running:
        line = faults(running.transport) if faults is not None else None
        if line is not None:
            line.armed = False
            running.transport = line
        try:
            client = running.connect(timeouts, log=_firmware_log(board, notice))
            on_port = port is not None or board.start is None
            if on_port:
                _upload_where_needed(client, model, notice)
            upload = on_port and Capability.MODEL_RAM in client.hello.capabilities
            device = LinkDevice(client, model, notice, running.details, upload)
            if line is not None:
                line.armed = True
            yield device
        except LinkClosedError:
            running.check()
            raise


def _firmware_log(board: Board, notice: Callable[[str], None] | None) -> Callable[[str], None] | None:
    """Passes on what the firmware logs, as one line."""
    if notice is None:
        return None
    return lambda text: notice(f"{board.name} says: {''.join(c if c.isprintable() else ' ' for c in text)}")


def _upload_where_needed(client: LinkClient, model: TvitModel, notice: Callable[[str], None] | None) -> None:
    try:
        if client.model_info().signature.hex() == model.signature:
            return
    except RemoteError:
        pass  # it has no usable model
    if Capability.MODEL_RAM in client.hello.capabilities:
        if notice:
            notice(f"the board runs another model: uploading {model.name} ({model.file_bytes:,} bytes) to its RAM")
        client.upload_model(model.file)

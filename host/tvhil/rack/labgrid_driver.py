# SPDX-License-Identifier: Apache-2.0
"""labgrid's farms of boards: a driver over the serial port that labgrid found, acquired and serves.

labgrid (https://labgrid.readthedocs.io) does the scheduling: places, reservations, exporters. An environment whose
targets have a `TvhilDriver` is a board pool (`tvhil run-eval --pool environment.yaml`; tools/labgrid_rack/ has one);
in labgrid's own tests and shells the driver opens the board:

>>> with target.get_driver("TvhilDriver").open("m.tvit") as device:
...     device.run(image)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attr
from labgrid import Environment
from labgrid.driver.common import Driver
from labgrid.factory import target_factory
from labgrid.resource import SerialPort
from labgrid.util.proxy import proxymanager

from tvhil.boards import Board, load_board
from tvhil.commands.common import open_model
from tvhil.errors import BoardError, InputError, TvhilError
from tvhil.evaluation.link_device import LinkDevice
from tvhil.evaluation.session import open_device
from tvhil.packing import TvitModel
from tvhil.rack.pool import Slot


@target_factory.reg_driver
@attr.s(eq=False)
class TvhilDriver(Driver):  # type: ignore[misc]
    """A board that runs tvhil's firmware.

    Binds to:
        port: SerialPort or NetworkSerialPort (protocol rfc2217 or raw), which an exporter may offer.

    Arguments:
        board: its name, as `tvhil run-eval --board` takes it.
    """

    bindings = {"port": {"SerialPort", "NetworkSerialPort"}}  # noqa: RUF012 - labgrid's convention
    board: str = attr.ib(validator=attr.validators.instance_of(str))

    @property
    def url(self) -> str:
        """The port as `tvhil run-eval --port` takes it; through labgrid's SSH tunnel where there is one."""
        if isinstance(self.port, SerialPort):
            return str(self.port.port)
        host, port = proxymanager.get_host_and_port(self.port)
        if self.port.protocol == "rfc2217":
            return f"rfc2217://{host}:{port}?ign_set_control"
        return f"socket://{host}:{port}"

    @Driver.check_active  # type: ignore[untyped-decorator]
    def open(self, model: TvitModel | Path | str, **options: Any) -> AbstractContextManager[LinkDevice]:
        """The board, running a model; options as those of `open_device`, errors also those of `model_for`."""
        board = load_board(self.board)
        return open_device(board, model_for(board, model), port=self.url, **options)


def model_for(board: Board, model: TvitModel | Path | str) -> TvitModel:
    """The model as a board may run it.

    Raises:
        InputError: the board's file names trusted keys, and this is not a file that one of them signed.
        ModelError: it is malformed.
    """
    if not isinstance(model, TvitModel):
        return open_model(Path(model), board.trusted_key_files)[0]
    if board.trusted_key_files:
        raise InputError(f"board {board.name} takes signed models only: give the file, not what was read from it")
    return model


def environment_slots(path: Path) -> list[Slot]:
    """The boards of a labgrid environment: every target that has a `TvhilDriver`, under the target's name.

    Raises:
        InputError: the environment is missing or malformed, or has no such target.
        BoardError: labgrid cannot give us a board (not acquired, exporter gone, no coordinator).
    """
    try:
        environment = Environment(str(path))
        names = [n for n, t in environment.config.get_targets().items() if "TvhilDriver" in str(t.get("drivers"))]
    except TvhilError:
        raise
    except Exception as error:  # labgrid and the YAML reader have no base class in common
        raise InputError(f"{path} is no labgrid environment: {error}") from None
    if not names:
        raise InputError(f"{path}: no target has a TvhilDriver")
    slots = []
    for name in names:
        try:
            driver = environment.get_target(name).get_driver("TvhilDriver")
            slots.append(Slot(name, load_board(driver.board), driver.url))
        except TvhilError:
            raise
        except Exception as error:  # as above
            raise BoardError(f"labgrid cannot give us {name}: {error}") from None
    return slots

# SPDX-License-Identifier: Apache-2.0
"""Put a bad line between any host and any board, to see what survives it. The proxy opens the board's port and offers
a pty or a TCP port to the host; bytes are damaged, the line stalls, the cable comes out and the board is reset, from a
seeded schedule."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvhil.commands.common import add_json, emit, facts_table, notice
from tvhil.errors import ExitCode, UsageError

EXAMPLES = """\
examples:
  tvhil fault-proxy --port socket://127.0.0.1:4000 --pty /tmp/loose --faults seed=1,count=1000,every=5000
  tvhil run-eval digits --board lx7sim --port /tmp/loose

  tvhil fault-proxy --port rfc2217://lab:4000 --tcp 5555 --faults kinds=disconnect+reset,every=100000
  tvhil run-eval digits --board qemu-xtensa --port socket://127.0.0.1:5555

kinds: flip, drop, duplicate, insert, truncate, repeat, delay, stall, disconnect, reset
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tvhil fault-proxy`."""
    parser.add_argument("--port", required=True, metavar="URL", help="serial port or URL of the board")
    parser.add_argument("--baud", type=int, default=115200, help="of the board's serial port (default 115200)")
    parser.add_argument("--pty", metavar="LINK", type=Path, help="offer a pty, by this symbolic link")
    parser.add_argument("--tcp", metavar="PORT", type=int, help="offer a TCP port of this machine (0: any)")
    parser.add_argument(
        "--faults", metavar="PLAN", default="", help="seed=1,count=1000[,every=BYTES][,baud=N][,kinds=flip+reset+...]"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until the board's line is gone or Ctrl-C."""
    from tvhil.link import open_transport
    from tvhil.link.fault_proxy import HostSide, PtySide, TcpSide, pump
    from tvhil.link.faults import FaultPlan

    if (options.pty is None) == (options.tcp is None):
        raise UsageError("where do hosts connect? either --pty LINK or --tcp PORT")
    plan = FaultPlan.parse(options.faults)
    with open_transport(options.port, options.baud) as inner:
        side: HostSide = PtySide(options.pty) if options.pty is not None else TcpSide(options.tcp)
        line = plan.around(inner)
        notice(f"hosts find the board at {side.name}; Ctrl-C ends")
        try:
            pump(side, line)
        except KeyboardInterrupt:
            kinds = {kind.value: n for kind, n in sorted(line.counts.items())}
            emit(options, {"faults": line.faults, "kinds": kinds}, [facts_table("Faults", list(kinds.items()))])
        finally:
            side.close()
    return ExitCode.OK

# SPDX-License-Identifier: Apache-2.0
"""Board files: one TOML a board in boards/, the only place for facts about it.

`[memory]`, `[firmware]`, `[start]`, `[counter]` are read here, and `[idf]`, `[flash]`, `[serial]`, `[usb]` of boards
with a flash chip; `[cost]` by `prediction.latency.CostModel`. Texts in `[firmware]` and `[start]` may name the figures
of `[memory]` in braces: `--arena={arena}`. boards/README.md tells how to write one.

`extends = "other"` brings all of another board's file, its `[cost]` only together with its firmware and counter. What
the file says itself goes before that, key by key; a list in `[firmware]` whose key ends in `_also` (`sources_also`,
`cflags_also`) is appended to the other's.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import tvhil
from tvhil.errors import InputError, UsageError
from tvhil.prediction.latency import CostModel
from tvhil.prediction.memory import MemoryLimits

KINDS = ("silicon", "emulator", "native")
KERNELS = ("portable", "pie")
T = TypeVar("T")


class BoardFileError(InputError):
    """A board file that is malformed; the message names the file and the key."""


@dataclass(frozen=True)
class Memory:
    """Sizes in bytes; 0 where there is none, None where it is not limited by the board.

    Attributes:
        arena: for activations.
        stack: of the thread that runs the model.
        model_ram: for a model that is uploaded instead of flashed.
        flash: of the area that a model is flashed into.
        ram: of the whole machine.
        psram: of the chip that the board has as external memory.
        psram_arena: of it, for models that do not fit the arena, which then takes the place of its first bytes.
    """

    arena: int
    stack: int
    model_ram: int = 0
    flash: int | None = None
    ram: int | None = None
    psram: int = 0
    psram_arena: int = 0


@dataclass(frozen=True)
class Firmware:
    """How the program that runs on the board is built from device/.

    Attributes:
        port: folder in device/ports.
        compiler: name of the C compiler; `cc` is the machine's own (or `$CC`).
        package: the distribution's package that holds it.
        sources: patterns, relative to device/.
        includes: directories, relative to device/.
        cflags, ldflags: of compiling and linking.
        libraries: at the end of the link command.
    """

    port: str
    compiler: str
    package: str
    sources: tuple[str, ...]
    includes: tuple[str, ...] = ("include", ".")
    cflags: tuple[str, ...] = ()
    ldflags: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """How a board that is a process of this machine is started.

    Attributes:
        command: its program and arguments. `{firmware}` and `{flash}` are the files, `{fd}` the number of the socket
            that is the link; a program that talks over stdin and stdout needs none. `{board}` is the board's name,
            `{lx7sim}` the simulator of this tree, built on first use.
        package: the distribution's package that holds the program; empty where the firmware is the program.
        machine: that the program, a QEMU, must know; Espressif's has the name of the distribution's.
        version: arguments that make the program print its version.
        pad_flash: the flash file must be as large as the flash.
        cores: of the machine, all of which the firmware uses; `{cores}` in the command.
        cycle_model: of a board that is lx7sim, the file with the parameters of its cycle model, relative to the
            checkout; `{cycle_model}` in the command. Such a board can be profiled.
    """

    command: tuple[str, ...]
    package: str = ""
    machine: str = ""
    version: tuple[str, ...] = ()
    pad_flash: bool = False
    cycle_model: str = ""
    cores: int = 1


@dataclass(frozen=True)
class Counter:
    """What the board's latency counter counts.

    Attributes:
        unit: 'cycles', 'instructions' or 'seconds'.
        source: where the figure comes from, for people.
        tick_time, instruction_shift: on an emulator whose clock moves 2^instruction_shift units an instruction, and
            that counts ticks of tick_time units: instructions = ticks * tick_time / 2^instruction_shift.
        band_percent: how far a measured latency may be from what `[cost]` predicts; 0 where nothing is promised.
        steady: equal work takes equal ticks; false where an emulator's clock is that of the machine it runs on.
    """

    unit: str
    source: str = ""
    tick_time: int = 0
    instruction_shift: int = 0
    band_percent: int = 0
    steady: bool = True


@dataclass(frozen=True)
class Idf:
    """How the firmware of a board with an ESP32 is built: a project of ESP-IDF, by PlatformIO or idf.py.

    Attributes:
        project: its folder, relative to device/.
        target: the chip, as ESP-IDF and esptool call it.
        defaults: files of sdkconfig defaults, relative to the project; what a later one says goes before.
        environment: of device/platformio.ini.
    """

    project: str
    target: str
    defaults: tuple[str, ...]
    environment: str


@dataclass(frozen=True)
class FlashChip:
    """The flash that esptool writes.

    Attributes:
        size: of the whole chip, bytes.
        partitions: the CSV of its partition table, relative to the project of `[idf]`.
        bootloader: where the boot loader lies; the chip's ROM says.
        table: where the partition table lies.
        app, model: names of the partitions that hold them.
    """

    size: int
    partitions: str
    bootloader: int = 0
    table: int = 0x8000
    app: str = "factory"
    model: str = "model"


@dataclass(frozen=True)
class SerialLine:
    """The serial line of a board.

    Attributes:
        baud: that the firmware starts with.
        link_rates: that host and firmware may go up to after the handshake, best first; none where the rate has no
            meaning (USB).
        flash_rates: for esptool, tried in this order.
        patience: seconds until a handshake is given up.
    """

    baud: int = 115200
    link_rates: tuple[int, ...] = ()
    flash_rates: tuple[int, ...] = (460800, 115200)
    patience: int = 10


@dataclass(frozen=True)
class Usb:
    """How the board is told from other serial ports.

    Attributes:
        ids: "VID:PID" in hexadecimal.
    """

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        name: as `--board` takes it.
        kind: 'silicon', 'emulator' or 'native'.
        summary: one line for people.
        path: its file.
        memory: sizes.
        firmware: how it is built; None for a board that another tool builds.
        start: how it is started; None for a board that is on a port.
        counter: of latency.
        cost: the cost model, of a simulation that of the board it stands for; None as long as nobody has calibrated it.
        firmware_of: another board, whose memory and firmware, to the byte, are this one's.
        trusted_keys: files of public keys, relative to the board file. Where there are any, only model files that were
            signed by one of them are put on this board (`packing.signing`).
        stands_for: the board of which this one is a simulation: plans are made for its memory.
        reference: a board with the portable kernels, which `bench` compares this one's with.
        kernels: which implementation of the operators its firmware has: 'pie' or 'portable'. The firmware tells, where
            it is built here.
        idf: how its firmware is built where it is a project of ESP-IDF.
        flash: the chip that esptool writes; goes with `idf`.
        serial: its line.
        usb: how to find its port.
    """

    name: str
    kind: str
    summary: str
    path: Path
    memory: Memory
    firmware: Firmware | None
    start: Start | None
    counter: Counter
    cost: CostModel | None = field(default=None, compare=False)
    firmware_of: str = ""
    trusted_keys: tuple[str, ...] = ()
    kernels: str = ""
    stands_for: str = ""
    reference: str = ""
    idf: Idf | None = None
    flash: FlashChip | None = None
    serial: SerialLine = SerialLine()
    usb: Usb | None = None

    @property
    def trusted_key_files(self) -> tuple[Path, ...]:
        """Where the keys lie."""
        return tuple(self.path.parent / name for name in self.trusted_keys)

    @property
    def cycle_model(self) -> Path | None:
        """The parameters of the cycle model, of a board that is simulated with one."""
        return checkout() / self.start.cycle_model if self.start is not None and self.start.cycle_model else None

    @property
    def cores(self) -> int:
        """Cores that its firmware shares an operator among where the kernels can: both of the ESP32-S3's."""
        if self.start is not None:
            return self.start.cores
        return 2 if self.kernels == "pie" else 1

    @property
    def limits(self) -> MemoryLimits:
        """What a model has to fit into."""
        return MemoryLimits(
            arena=self.memory.arena,
            psram_arena=self.memory.psram_arena,
            model=self.memory.flash,
            stack=self.memory.stack,
            kernels=self.kernels,
        )

    @property
    def build_dir(self) -> Path:
        """Where its firmware, flash images and logs are kept."""
        return build_root() / self.name

    def expand(self, text: str, **values: object) -> str:
        """Replace `{arena}`, `{stack}` … by the figures of the board, and `values` likewise.

        Raises:
            BoardFileError: an unknown name in braces.
        """
        known = {f.name: getattr(self.memory, f.name) for f in fields(Memory)}
        known |= {"cores": self.start.cores if self.start is not None else 1}
        known |= {"board": self.name, "tick_time": self.counter.tick_time}
        known |= {"instruction_shift": self.counter.instruction_shift, **values}
        try:
            return text.format_map(known)
        except (KeyError, ValueError, IndexError) as error:
            raise BoardFileError(f"{self.path}: {text!r}: unknown {error}; known: {', '.join(sorted(known))}") from None


def checkout() -> Path:
    """The root of the checkout that tvhil runs from."""
    return Path(tvhil.__file__).resolve().parents[2]


def build_root() -> Path:
    """Where everything built is kept: `build/`, or `$TVHIL_BUILD_DIR`."""
    override = os.environ.get("TVHIL_BUILD_DIR")
    return Path(override) if override else checkout() / "build"


def boards_dir() -> Path:
    """Where the board files are: `boards/`, or `$TVHIL_BOARDS_DIR`.

    Raises:
        InputError: there is no such directory.
    """
    override = os.environ.get("TVHIL_BOARDS_DIR")
    path = Path(override) if override else checkout() / "boards"
    if not path.is_dir():
        raise InputError(
            f"no board files in {path}: install tvhil from a checkout (pip install --editable .), "
            "or set TVHIL_BOARDS_DIR"
        )
    return path


def board_names() -> list[str]:
    """Names of the boards that have a file."""
    return sorted(path.stem for path in boards_dir().glob("*.toml") if path.is_file())


def list_boards(malformed: list[BoardFileError] | None = None) -> list[Board]:
    """Every board that has a file, by name.

    Args:
        malformed: takes what is wrong with files that are malformed, and the other boards are listed; None refuses
            the first.

    Raises:
        BoardFileError: a file is malformed.
    """
    boards = []
    for name in board_names():
        try:
            boards.append(load_board(name))
        except BoardFileError as error:
            if malformed is None:
                raise
            malformed.append(error)
    return boards


def load_board(name: str | Path) -> Board:
    """Read a board file.

    Args:
        name: of a board in boards/, or the path of a board file (ending in `.toml`).

    Raises:
        UsageError: there is no such board.
        BoardFileError: its file is malformed.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = boards_dir() / f"{name}.toml"
        if not path.is_file():
            names = board_names()
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            raise UsageError(f"there is no board {str(name)!r}; {hint}")
    return _load(path)


def _load(path: Path, borrow_cost: bool = True) -> Board:
    """A board from its file; without `borrow_cost` only with a cost model of its own, so that none leads back here."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"there is no board file {path}") from None
    except IsADirectoryError:
        raise BoardFileError(f"{path} is a folder, not a board file") from None
    except OSError as error:
        raise BoardFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # tomllib's own, of a number, of the encoding, of nesting
        raise BoardFileError(f"{path}: {error}") from None
    return _board(path, content, borrow_cost)


def _board(path: Path, content: dict[str, Any], borrow_cost: bool) -> Board:
    content = _extended(path, content)
    more = {"idf": Idf, "flash": FlashChip, "serial": SerialLine, "usb": Usb}
    tables = {"memory", "firmware", "start", "counter", "cost", *more}
    plain = {key: value for key, value in content.items() if key not in tables}
    base = _base(path, content)
    for key in ("counter",) if base else ("memory", "counter"):
        if key not in content:
            raise BoardFileError(f"{path}: [{key}] is missing")
    try:
        cost = CostModel.from_table(content["cost"]) if "cost" in content else None
    except InputError as error:
        raise BoardFileError(f"{path}: {error}") from None
    read = functools.partial(_record, path)
    start = read(Start, "start", content["start"]) if "start" in content else None
    firmware = read(Firmware, "firmware", content["firmware"]) if "firmware" in content else None
    counter = read(Counter, "counter", content["counter"])
    memory = base.memory if base else read(Memory, "memory", content["memory"])
    firmware = base.firmware if base else firmware
    if firmware is not None or "kernels" not in plain:
        flags = firmware.cflags if firmware is not None else ()
        plain["kernels"] = "pie" if "-DTVIT_KERNELS_PIE" in flags else "portable"
    given: dict[str, Any] = {key: read(kind, key, content[key]) for key, kind in more.items() if key in content}
    if ("idf" in given) != ("flash" in given):
        raise BoardFileError(f"{path}: [idf] and [flash] go together")
    board = read(
        Board, "", plain, path=path, memory=memory, firmware=firmware, start=start, counter=counter, cost=cost, **given
    )  # fmt: skip
    if cost is None and board.stands_for and borrow_cost:
        board = replace(board, cost=_load(_beside(path, "stands_for", board.stands_for), borrow_cost=False).cost)
    if board.name != path.stem:
        raise BoardFileError(f"{path}: its name is {board.name!r}; name and file must agree")
    if board.kind not in KINDS:
        raise BoardFileError(f"{path}: kind {board.kind!r} is none of {', '.join(KINDS)}")
    if board.kernels not in KERNELS:
        raise BoardFileError(f"{path}: kernels {board.kernels!r} is none of {', '.join(KERNELS)}")
    bad = [one for one in (board.usb.ids if board.usb else ()) if not re.fullmatch("[0-9a-f]{4}:[0-9a-f]{4}", one)]
    if bad:
        raise BoardFileError(f"{path}: [usb] ids: {bad[0]!r} is not VID:PID in small hexadecimal digits, as 303a:1001")
    if start is not None and not 1 <= start.cores <= 2:
        raise BoardFileError(f"{path}: [start] cores must be 1 or 2")
    if cost is not None and cost.unit != counter.unit:
        raise BoardFileError(f"{path}: [cost] is in {cost.unit}, [counter] in {counter.unit}")
    if counter.tick_time and not 0 < counter.tick_time <= 1 << counter.instruction_shift <= 1024:
        raise BoardFileError(f"{path}: [counter] a tick must not be longer than an instruction")
    return board


def _extended(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a board file with that of the board that it extends under it."""
    own = dict(content)
    if "extends" not in own:
        return own
    name = own.pop("extends")
    try:
        base = tomllib.loads(_beside(path, "extends", name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BoardFileError(f"{path}: extends {name!r}: {error}") from None
    borrowing = next((key for key in ("extends", "firmware_of") if key in {**base, **own}), None)
    if borrowing:
        raise BoardFileError(f"{path}: extends {name!r}: {borrowing} cannot be combined with it; name the first board")
    if {"firmware", "kernels"} & own.keys() or "unit" in _keys(own.get("counter")):
        base.pop("cost", None)
    for key, value in own.items():
        table = base.get(key)
        base[key] = _overlaid(path, table, value, key) if isinstance(table, dict) and isinstance(value, dict) else value
    return base


def _keys(table: object) -> Iterable[str]:
    """The keys of a table; of what is none, which `_record` refuses, nothing."""
    return table.keys() if isinstance(table, dict) else ()


def _overlaid(path: Path, base: dict[str, Any], own: dict[str, Any], table: str) -> dict[str, Any]:
    """A table of the other board with a board's own keys over it."""
    merged = {**base, **own}
    for key in own if table == "firmware" else ():
        name = key.removesuffix("_also")
        if name == key:
            continue
        more, given = merged.pop(key), merged.get(name, [])
        if not isinstance(more, list) or not isinstance(given, list):
            raise BoardFileError(f"{path}: [{table}] {key} must be a list that is appended to the list {name}")
        merged[name] = [*given, *more]
    return merged


def _beside(path: Path, key: str, name: object) -> Path:
    """The file of another board that a board file names."""
    other = path.parent / f"{name}.toml"
    if not isinstance(name, str) or name == path.stem or not other.is_file():
        raise BoardFileError(f"{path}: {key} {name!r}: there is no such board beside this file")
    return other


def _base(path: Path, content: Mapping[str, Any]) -> Board | None:
    """The board that `firmware_of` names, None where the board has a firmware of its own."""
    name = content.get("firmware_of")
    if name is None:
        return None
    both = [f"[{key}]" for key in ("memory", "firmware") if key in content]
    if both:
        raise BoardFileError(f"{path}: firmware_of brings the other board's memory and firmware; remove {both[0]}")
    other = _beside(path, "firmware_of", name)
    if re.search(r"^\s*firmware_of\s*=", other.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        raise BoardFileError(
            f"{path}: firmware_of {name!r}: that board's firmware is another one's, too; name that one"
        )
    return _load(other, borrow_cost=False)


def _record(file: Path, kind: type[T], table: str, values: Mapping[str, Any], **given: Any) -> T:
    """Make a dataclass of a TOML table, checking names and types."""
    place = f"{file}: [{table}]" if table else f"{file}:"
    if not isinstance(values, dict):
        raise BoardFileError(f"{place} must be a table")
    known = {f.name: f for f in fields(kind) if f.name not in given}  # type: ignore[arg-type]
    arguments: dict[str, Any] = dict(given)
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise BoardFileError(f"{place} unknown key {key!r}{hint}")
        arguments[key] = _value(f"{place} {key}", str(known[key].type), value)
    try:
        return kind(**arguments)
    except TypeError as error:
        missing = str(error).partition(": ")[2] or str(error)
        raise BoardFileError(f"{place} missing: {missing}") from None


def _value(place: str, kind: str, value: Any) -> Any:
    if kind == "tuple[int, ...]":
        numbers = value if isinstance(value, list) else [None]
        if not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in numbers):
            raise BoardFileError(f"{place} must be a list of numbers above 0")
        return tuple(numbers)
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise BoardFileError(f"{place} must be a list of strings")
        return tuple(value)
    if kind.startswith("int"):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise BoardFileError(f"{place} must be a number of at least 0")
        return value
    if kind == "bool" and not isinstance(value, bool):
        raise BoardFileError(f"{place} must be true or false")
    if kind == "str" and not isinstance(value, str):
        raise BoardFileError(f"{place} must be a text")
    return value

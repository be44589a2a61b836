# SPDX-License-Identifier: Apache-2.0
"""A chip in download mode, as far as esptool can tell: the serial protocol of the boot ROM and of esptool's stub, on a
pty or a TCP socket, with a flash behind it and faults to provoke.

Source: the serial protocol in esptool's documentation. A packet is SLIP (C0 ... C0, escapes DB DC and DB DD) around
direction u8, command u8, length u16, value u32 (of data: its checksum), data. Answers of the ROM end with four bytes of
status, those of the stub with two. esptool loads its stub with MEM_BEGIN ... MEM_END; this double runs none of it, it
changes over to the stub's answers.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import termios
import threading
import tty
import zlib
from dataclasses import dataclass, field

ESP32S3, ESP32C3 = 9, 5  # chip ids
_BOOT_LOG = b"ESP-ROM:esp32s3-20210327\r\nrst:0x15 (USB_UART_CHIP_RESET),boot:0x8 (SPI_FAST_FLASH_BOOT)\r\n"
_SPI = 0x60002000
_SPI_CMD, _SPI_ADDR, _SPI_USR2, _SPI_W0 = _SPI, _SPI + 4, _SPI + 0x20, _SPI + 0x58
_FLASH_BEGIN, _FLASH_DATA, _FLASH_END, _MEM_BEGIN, _MEM_END, _MEM_DATA, _SYNC = 2, 3, 4, 5, 6, 7, 8
_WRITE_REG, _READ_REG, _SET_PARAMS, _ATTACH, _CHANGE_BAUD = 9, 10, 11, 13, 15
_DEFL_BEGIN, _DEFL_DATA, _DEFL_END, _MD5, _SECURITY = 16, 17, 18, 19, 20
_RUN_USER_CODE = 0xD3  # of the stub, which leaves it


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        silent: it never answers.
        no_stub: the stub does not start.
        at_block: the data block, counted from 0 over the whole life, at which the next ones happen; None never.
        unplug: the port is gone.
        reset: the firmware in flash starts.
        lose_sync: the answers to this many blocks are lost.
        highest_baud: above it every byte is damaged.
        bad_flash: an offset whose byte is not written.
    """

    silent: bool = False
    no_stub: bool = False
    at_block: int | None = None
    unplug: bool = False
    reset: bool = False
    lose_sync: int = 0
    highest_baud: int = 10_000_000
    bad_flash: int | None = None


@dataclass
class EsptoolDouble:
    """The chip.

    Attributes:
        chip: its id.
        flash_size: in bytes, a power of two.
        faults: what goes wrong.
        port: what to give esptool.
        writes: offset and bytes of each region that was erased to be written.
        commands: number of every command that came.
    """

    chip: int = ESP32S3
    flash_size: int = 16 << 20
    faults: Faults = field(default_factory=Faults)
    over_socket: bool = False
    port: str = ""
    writes: list[tuple[int, int]] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)
    blocks: int = 0

    def __post_init__(self) -> None:
        self.flash = bytearray(b"\xff") * self.flash_size
        self._registers: dict[int, int] = {}
        self._stub = self._running_firmware = False
        self._baud = 115200
        self._packet = bytearray()
        self._gone = threading.Event()
        if self.over_socket:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = f"socket://127.0.0.1:{self._listener.getsockname()[1]}"
            self._fd, self._other = -1, -1
        else:
            self._fd, self._other = os.openpty()
            tty.setraw(self._other)
            self.port = os.ttyname(self._other)
        self._stop_in, self._stop_out = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> EsptoolDouble:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_out, b"x")
        self._thread.join(10)
        for descriptor in (self._fd, self._other, self._stop_in, self._stop_out):
            if descriptor >= 0:
                os.close(descriptor)
        if self.over_socket:
            self._listener.close()

    # --- the line ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._gone.is_set():
            if self.over_socket and self._fd < 0:
                ready, _, _ = select.select([self._listener, self._stop_in], [], [])
                if self._stop_in in ready:
                    return
                self._fd = self._listener.accept()[0].detach()
            ready, _, _ = select.select([self._fd, self._stop_in], [], [])
            if self._stop_in in ready:
                return
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                data = b""
            if not data and self.over_socket:
                os.close(self._fd)
                self._fd = -1
                self._packet.clear()
                continue
            for byte in data:
                self._take(byte)

    def _take(self, byte: int) -> None:
        if byte != 0xC0:
            self._packet.append(byte)
            return
        packet = bytes(self._packet).replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")
        self._packet.clear()
        if len(packet) >= 8 and packet[0] == 0 and not self._gone.is_set():
            self._handle(packet)

    def _say(self, packet: bytes) -> None:
        line = b"\xc0" + packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"
        if self._baud > self.faults.highest_baud or self._host_baud() not in (None, self._baud):
            line = bytes(byte ^ 0x5A for byte in line)
        os.write(self._fd, line)

    def _host_baud(self) -> int | None:
        """What the host has set its end of the pty to, as far as that tells."""
        if self.over_socket:
            return None
        speed = termios.tcgetattr(self._other)[5]
        names = {
            getattr(termios, name): int(name[1:]) for name in dir(termios) if name[1:].isdigit() and name[0] == "B"
        }
        return names.get(speed)

    def _answer(self, command: int, data: bytes = b"", value: int = 0, error: int = 0) -> None:
        status = bytes([bool(error), error]) + (b"" if self._stub else b"\0\0")
        body = data + status
        self._say(struct.pack("<BBHI", 1, command, len(body), value) + body)

    # --- the loader --------------------------------------------------------------------------------------------

    def _handle(self, packet: bytes) -> None:
        _, command, _, checksum = struct.unpack_from("<BBHI", packet)
        data = packet[8:]
        if command == _SYNC and not self.over_socket and self._host_baud() == 115200:
            self._start_loader()  # the host's reset lines do nothing on a pty: a SYNC at the first rate stands for them
        if self.faults.silent or self._running_firmware:
            return
        self.commands.append(command)
        if command in (_FLASH_DATA, _DEFL_DATA):
            self._take_block(command, data, checksum)
            return
        handler = {
            _SYNC: self._sync, _READ_REG: self._read_register, _WRITE_REG: self._write_register, _MD5: self._md5,
            _SECURITY: self._security, _MEM_END: self._mem_end, _CHANGE_BAUD: self._change_baud,
            _FLASH_BEGIN: self._begin, _DEFL_BEGIN: self._begin, _RUN_USER_CODE: self._leave_stub,
        }.get(command)  # fmt: skip
        if handler is not None:
            handler(command, data)
        else:
            known = (_MEM_BEGIN, _MEM_DATA, _SET_PARAMS, _ATTACH, _FLASH_END, _DEFL_END)
            self._answer(command, error=0 if command in known else 5)

    def _start_loader(self) -> None:
        self._stub = False
        self._baud = 115200

    def _sync(self, command: int, _: bytes) -> None:
        for _ in range(8):
            self._answer(command, value=0 if self._stub else 0x20120707)

    def _read_register(self, command: int, data: bytes) -> None:
        self._answer(command, value=self._registers.get(struct.unpack_from("<I", data)[0], 0))

    def _write_register(self, command: int, data: bytes) -> None:
        address, value = struct.unpack_from("<II", data)
        self._registers[address] = value
        if address == _SPI_CMD:
            self._registers[_SPI_CMD] = 0  # done at once
            self._registers[_SPI_W0] = self._spi(self._registers.get(_SPI_USR2, 0) & 0xFF)
        self._answer(command)

    def _spi(self, command: int) -> int:
        if command == 0x9F:  # JEDEC id: Winbond, and the size as a power of two
            return 0xEF | 0x40 << 8 | (self.flash_size.bit_length() - 1) << 16
        if command == 0x5A and self._registers.get(_SPI_ADDR, 0) == 0:
            return int.from_bytes(b"SFDP", "little")
        return 0

    def _security(self, command: int, _: bytes) -> None:
        self._answer(command, struct.pack("<IB7sII", 0, 0, bytes(7), self.chip, 0))

    def _mem_end(self, command: int, data: bytes) -> None:
        self._answer(command)
        if struct.unpack_from("<I", data)[0] == 0:  # run it
            self._stub = True
            if not self.faults.no_stub:
                self._say(b"OHAI")

    def _leave_stub(self, command: int, _: bytes) -> None:
        self._stub = False

    def _change_baud(self, command: int, data: bytes) -> None:
        self._answer(command)
        self._baud = struct.unpack_from("<I", data)[0]

    def _begin(self, command: int, data: bytes) -> None:
        size, _, _, offset = struct.unpack_from("<IIII", data)
        self._at, self._inflate = offset, zlib.decompressobj() if command == _DEFL_BEGIN else None
        if size:
            self.writes.append((offset, size))
            end = -(-(offset + size) // 4096) * 4096
            self.flash[offset:end] = b"\xff" * (end - offset)
        self._answer(command)

    def _take_block(self, command: int, data: bytes, checksum: int) -> None:
        faults, number = self.faults, self.blocks
        self.blocks += 1
        if faults.at_block is not None and number >= faults.at_block:
            if faults.unplug:
                self._gone.set()
                os.close(self._fd)
                self._fd = -1
                return
            if faults.reset:
                self._running_firmware = True
                os.write(self._fd, _BOOT_LOG)
                return
            if number < faults.at_block + faults.lose_sync:
                return
        content = data[16 : 16 + struct.unpack_from("<I", data)[0]]
        state = 0xEF
        for byte in content:
            state ^= byte
        if state != checksum & 0xFF:
            self._answer(command, error=7)
            return
        content = self._inflate.decompress(content) if self._inflate is not None else content
        self.flash[self._at : self._at + len(content)] = content
        if faults.bad_flash is not None and self._at <= faults.bad_flash < self._at + len(content):
            self.flash[faults.bad_flash] ^= 1
        self._at += len(content)
        self._answer(command)

    def _md5(self, command: int, data: bytes) -> None:
        offset, size = struct.unpack_from("<II", data)
        digest = hashlib.md5(self.flash[offset : offset + size])
        self._answer(command, digest.digest() if self._stub else digest.hexdigest().encode())

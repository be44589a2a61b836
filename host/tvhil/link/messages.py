# SPDX-License-Identifier: Apache-2.0
"""Requests, answers and events of the link; mirrors device/include/tvit/protocol.h, and a test compares the two."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

LINK_VERSION = 2
MAGIC = 0x4B4C5654
NUMBER_MASK = 0xFFF0
MIN_PAYLOAD = 256
ANSWER = 0x80
ALL = 0xFFFFFFFF
NO_INDEX = 0xFFFFFFFF
MEMORY_REPAINT = 1
RESET_KEY = 0x52455345
BAUD_TRIAL = 512


class Request(IntEnum):
    """What a host may ask."""

    HELLO = 1
    INFO = 2
    MODEL_INFO = 3
    MEMORY = 4
    WRITE = 5
    READ = 6
    CHECKSUM = 7
    RUN = 8
    ECHO = 9
    MODEL_LOAD = 10
    RESET = 11
    TEST_FAULT = 12
    SET_BAUD = 13


class Event(IntEnum):
    """Frames of the device that are not answers."""

    ERROR = 0x40
    NAK = 0x41
    PROGRESS = 0x42
    FAULT = 0x43
    BOOT = 0x44
    LOG = 0x45


class ErrorCode(IntEnum):
    """Codes of ERROR; `RUNTIME` + n is status n of the C runtime."""

    VERSION = 1
    SESSION = 2
    TYPE = 3
    LENGTH = 4
    ARGUMENT = 5
    RANGE = 6
    NO_MODEL = 7
    NOT_SUPPORTED = 8
    IMAGE_CRC = 9
    BUSY = 10
    STALE = 11
    RUNTIME = 256


class Capability(IntFlag):
    """What a board offers beyond the minimum."""

    MODEL_RAM = 1
    RESET = 2
    TRACE = 4
    TEST_FAULT = 8
    BAUD = 16


class Region(IntEnum):
    """What READ, WRITE and CHECKSUM address."""

    TENSOR = 0
    MULTIPLIERS = 1
    TRACE = 2
    MODEL = 3
    MODEL_RAM = 4


class RunFlag(IntFlag):
    """What a run records of each operator."""

    TRACE_COUNTERS = 1
    TRACE_CRC = 2


class ModelSource(IntEnum):
    """Where the model in use comes from."""

    FLASH = 0
    RAM = 1


class CounterUnit(IntEnum):
    """Unit of a board's counter."""

    CYCLES = 0
    INSTRUCTIONS = 1
    NANOSECONDS = 2


class Layout(IntEnum):
    """How activations lie in a board's arena; what is read over the link comes as rows."""

    ROWS = 0
    TOKEN_BLOCKS = 1


class TestFault(IntEnum):
    """Ways to provoke a failure on a board that is armed for it."""

    __test__ = False  # not a test class

    INVALID_LOAD = 1
    HANG = 2


HELLO = struct.Struct("<IHHI")
HELLO_ANSWER = struct.Struct("<IHHIIIII")
INFO = struct.Struct("<HHIIIIIIIHHHH")
INFO_MEMORY = struct.Struct("<QI")
MODEL_INFO = struct.Struct("<32s64s5I16HQQfHH16s")
MEMORY = struct.Struct("<14I")
WRITE = struct.Struct("<BBHI")  # then data
READ = struct.Struct("<BBHII")
CHECKSUM_ANSWER = struct.Struct("<III")
RUN = struct.Struct("<HHIII")
RUN_ANSWER = struct.Struct("<QIIIHH")
TRACE = struct.Struct("<QII")
ERROR = struct.Struct("<HH4sI")  # then text
PROGRESS = struct.Struct("<II")
FAULT = struct.Struct("<IIQQII")  # then text
BOOT = struct.Struct("<HH")  # then text


@dataclass(frozen=True)
class HelloAnswer:
    """What HELLO agreed on.

    Attributes:
        protocol_version: of the link.
        format_version: of the `.tvit` files that the firmware reads.
        capabilities: what the board offers.
        max_payload: largest payload in either direction, bytes.
        window: bytes of frames that may be on their way to the board; 0: one frame at a time.
    """

    protocol_version: int
    format_version: int
    nonce: int
    capabilities: Capability
    max_payload: int
    window: int

    @classmethod
    def unpack(cls, payload: bytes) -> HelloAnswer:
        """Parse; raises ValueError for a malformed one."""
        magic, version, file_version, nonce, capabilities, max_payload, window, _ = _unpack(HELLO_ANSWER, payload)
        if magic != MAGIC or max_payload < MIN_PAYLOAD:
            raise ValueError("malformed HELLO answer")
        return cls(version, file_version, nonce, Capability(capabilities), max_payload, window)


@dataclass(frozen=True)
class Memory:
    """One memory of a board: name, address, size in bytes."""

    name: str
    base: int
    bytes: int


@dataclass(frozen=True)
class BoardInfo:
    """What a board says of itself.

    Attributes:
        counter_unit: unit of a counter after `counter_multiplier / counter_divisor` has been applied.
        clock_hz: of the core, 0 when unknown.
        arena_bytes, model_area_bytes, model_ram_bytes: sizes of its memories, 0 for none.
        trace_capacity: operators that one traced run records.
        model_status: None without a model, otherwise the runtime's status, 0 for a usable one.
        details: `key: value` of what the port tells about the machine.
        cores: that can share an operator's work.
        layouts: of the kernels in its firmware.
    """

    port: str
    board: str
    firmware_version: str
    build_id: str
    format_version: int
    counter_unit: CounterUnit
    counter_multiplier: int
    counter_divisor: int
    clock_hz: int
    arena_bytes: int
    model_area_bytes: int
    model_ram_bytes: int
    trace_capacity: int
    model_status: int | None
    memories: tuple[Memory, ...]
    details: dict[str, str]
    cores: int
    layouts: tuple[Layout, ...]

    @classmethod
    def unpack(cls, payload: bytes) -> BoardInfo:
        """Parse; raises ValueError for a malformed one."""
        fields = _unpack(INFO, payload[: INFO.size])
        file_version, unit, clock, multiplier, divisor, arena, area, ram, capacity, status, count = fields[:11]
        cores, layouts = fields[11:]
        texts_at = INFO.size + count * INFO_MEMORY.size
        records = [_unpack(INFO_MEMORY, payload[at : at + 12]) for at in range(INFO.size, texts_at, INFO_MEMORY.size)]
        texts = [text.decode("utf-8", "replace") for text in payload[texts_at:].split(b"\0")]
        texts += [""] * (5 + count - len(texts))
        if divisor == 0:
            raise ValueError("counter divisor of 0")
        return cls(
            port=texts[0],
            board=texts[1],
            firmware_version=texts[2],
            build_id=texts[3],
            format_version=file_version,
            counter_unit=CounterUnit(unit),
            counter_multiplier=multiplier,
            counter_divisor=divisor,
            clock_hz=clock,
            arena_bytes=arena,
            model_area_bytes=area,
            model_ram_bytes=ram,
            trace_capacity=capacity,
            model_status=None if status == 0xFFFF else status,
            memories=tuple(Memory(texts[5 + i], *record) for i, record in enumerate(records)),
            details=dict(line.split("=", 1) for line in texts[4].splitlines() if "=" in line),
            cores=cores,
            layouts=tuple(layout for layout in Layout if layouts >> layout & 1),
        )

    @property
    def latency_unit(self) -> str:
        """Unit that `latency` converts to, as reports name it."""
        return ("cycles", "instructions", "seconds")[self.counter_unit]

    def latency(self, ticks: int) -> float:
        """Ticks of the counter in cycles, instructions or seconds."""
        value = ticks * self.counter_multiplier / self.counter_divisor
        return value * 1e-9 if self.counter_unit is CounterUnit.NANOSECONDS else value


@dataclass(frozen=True)
class ModelInfo:
    """The model in use on a board; the fields are those of the file (device/FORMAT.md).

    Attributes:
        signature: SHA-256 that names the model.
        arena_bytes: that this firmware needs: the plan's, or more where its kernels need more scratch than planned.
        source: flash or uploaded RAM.
        layout: of the activations in the arena.
        cores: that share the work of an operator.
        kernels: name of the kernels that run it.
    """

    signature: bytes
    name: str
    file_bytes: int
    arena_bytes: int
    scratch_bytes: int
    tensors: int
    operators: int
    image_height: int
    image_width: int
    image_channels: int
    patch_size: int
    tokens: int
    prefix_tokens: int
    embed_dim: int
    depth: int
    heads: int
    head_dim: int
    mlp_dim: int
    classes: int
    scale_mode: int
    stream: int
    logits: int
    source: ModelSource
    parameters: int
    macs: int
    logit_scale: float
    layout: Layout
    cores: int
    kernels: str

    @classmethod
    def unpack(cls, payload: bytes) -> ModelInfo:
        """Parse; raises ValueError for a malformed one."""
        signature, name, *numbers, layout, cores, kernels = _unpack(MODEL_INFO, payload)
        numbers[20] = ModelSource(numbers[20])
        numbers += [Layout(layout), cores, _text(kernels)]
        return cls(signature, _text(name), *numbers)

    @property
    def image_bytes(self) -> int:
        """Size of tensor 0."""
        return self.image_height * self.image_width * self.image_channels


@dataclass(frozen=True)
class MemoryReport:
    """Memory of a board in bytes; 0 means unknown or none.

    Attributes:
        arena_bytes: what there is.
        arena_planned: what the model's plan asks for.
        arena_used: high-water mark since the model was loaded, rounded up to 16.
        arena_observed: how far from its start the arena was painted.
        stack_bytes, stack_used: size and high-water mark of the server's stack.
        static_bytes: .data and .bss.
        link_bytes: the link server's part of `static_bytes`.
        second_stack_bytes, second_stack_used: of the second core.
    """

    arena_bytes: int
    arena_planned: int
    arena_used: int
    arena_observed: int
    stack_bytes: int
    stack_used: int
    static_bytes: int
    code_bytes: int
    heap_bytes: int
    heap_used: int
    model_bytes: int
    link_bytes: int
    second_stack_bytes: int
    second_stack_used: int

    @classmethod
    def unpack(cls, payload: bytes) -> MemoryReport:
        """Parse; raises ValueError for a malformed one."""
        return cls(*_unpack(MEMORY, payload))


@dataclass(frozen=True)
class RunResult:
    """One run.

    Attributes:
        counter: ticks, without what the server itself did in between.
        operators: how many ran.
        trace_count: how many of them were recorded.
        output: id of the tensor that the last one wrote.
        output_crc: CRC-32 of its values and then of its multipliers.
    """

    counter: int
    operators: int
    trace_count: int
    output_crc: int
    output: int

    @classmethod
    def unpack(cls, payload: bytes) -> RunResult:
        """Parse; raises ValueError for a malformed one."""
        counter, operators, trace_count, crc, output, _status = _unpack(RUN_ANSWER, payload)
        return cls(counter, operators, trace_count, crc, output)


@dataclass(frozen=True)
class TraceRecord:
    """One operator of a traced run: ticks spent in it, CRC-32 of its output (0 where it was not asked for)."""

    counter: int
    crc: int
    operator: int


@dataclass(frozen=True)
class Fault:
    """What a fault handler reported.

    Attributes:
        cause: as the machine numbers it (EXCCAUSE, signal number).
        operator: that was running, or None.
    """

    cause: int
    core: int
    pc: int
    address: int
    operator: int | None
    text: str

    @classmethod
    def unpack(cls, payload: bytes) -> Fault:
        """Parse; raises ValueError for a malformed one."""
        cause, core, pc, address, operator, _ = _unpack(FAULT, payload[: FAULT.size])
        text = payload[FAULT.size :].decode("utf-8", "replace")
        return cls(cause, core, pc, address, None if operator == NO_INDEX else operator, text)

    def __str__(self) -> str:
        where = "" if self.operator is None else f" in operator {self.operator}"
        core = f" on core {self.core}" if self.core else ""
        return f"{self.text or 'fault'} (cause {self.cause}) at {self.pc:#x}, address {self.address:#x}{where}{core}"


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise ValueError(f"{len(payload)} bytes where {layout.size} were expected")
    return layout.unpack(payload)

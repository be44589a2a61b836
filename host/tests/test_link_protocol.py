# SPDX-License-Identifier: Apache-2.0
"""The constants and layouts of the link are the same in C and in Python."""

from __future__ import annotations

import re
import struct
from enum import IntEnum

import pytest

from tvhil.link import framing, messages
from tvhil.packing.format import Status
from tvhil.runtime import device_dir

HEADER = (device_dir() / "include" / "tvit" / "protocol.h").read_text()
DEFINES = {name: int(value, 0) for name, value in re.findall(r"#define TVIT_LINK_(\w+) (\w+?)u\b", HEADER)}
ENUMS = {
    name: {key: int(value, 0) for key, value in re.findall(r"TVIT_LINK_(\w+) = (\w+)", body)}
    for body, name in re.findall(r"typedef enum \{(.*?)\} tvit_link_(\w+);", HEADER, re.DOTALL)
}


@pytest.mark.parametrize(
    ("name", "prefix", "mirror"),
    [
        ("request", "", messages.Request),
        ("event", "", messages.Event),
        ("error", "E_", messages.ErrorCode),
        ("capability", "CAP_", messages.Capability),
        ("region", "REGION_", messages.Region),
        ("run_flag", "RUN_", messages.RunFlag),
        ("model_source", "MODEL_", messages.ModelSource),
        ("counter_unit", "COUNTER_", messages.CounterUnit),
        ("test", "TEST_", messages.TestFault),
    ],
)
def test_every_enumeration_of_the_header_is_mirrored(name: str, prefix: str, mirror: type[IntEnum]) -> None:
    assert ENUMS[name] == {prefix + member.name: member.value for member in mirror}


def test_the_layouts_of_the_kernels_are_mirrored() -> None:
    kernels = (device_dir() / "include" / "tvit" / "kernels.h").read_text()
    found = re.findall(r"TVIT_LAYOUT_(\w+) = (\d+)", kernels)
    assert {name: int(value) for name, value in found} == {layout.name: layout.value for layout in messages.Layout}


def test_no_enumeration_of_the_header_is_forgotten() -> None:
    assert len(ENUMS) == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VERSION", messages.LINK_VERSION),
        ("MAGIC", messages.MAGIC),
        ("NUMBER_MASK", messages.NUMBER_MASK),
        ("MIN_PAYLOAD", messages.MIN_PAYLOAD),
        ("LIMIT_PAYLOAD", framing.LIMIT_PAYLOAD),
        ("ANSWER", messages.ANSWER),
        ("ALL", messages.ALL),
        ("MEMORY_REPAINT", messages.MEMORY_REPAINT),
        ("RESET_KEY", messages.RESET_KEY),
        ("HEADER_BYTES", framing.HEADER.size),
        ("CRC_BYTES", framing.CRC.size),
    ],
)
def test_constants_of_the_header_are_mirrored(name: str, value: int) -> None:
    assert DEFINES[name] == value


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("HELLO_BYTES", messages.HELLO),
        ("HELLO_ANSWER_BYTES", messages.HELLO_ANSWER),
        ("INFO_BYTES", messages.INFO),
        ("MODEL_INFO_BYTES", messages.MODEL_INFO),
        ("MEMORY_BYTES", messages.MEMORY),
        ("WRITE_BYTES", messages.WRITE),
        ("READ_BYTES", messages.READ),
        ("CHECKSUM_ANSWER_BYTES", messages.CHECKSUM_ANSWER),
        ("RUN_BYTES", messages.RUN),
        ("RUN_ANSWER_BYTES", messages.RUN_ANSWER),
        ("TRACE_BYTES", messages.TRACE),
        ("ERROR_BYTES", messages.ERROR),
        ("PROGRESS_BYTES", messages.PROGRESS),
        ("FAULT_BYTES", messages.FAULT),
        ("BOOT_BYTES", messages.BOOT),
    ],
)
def test_sizes_of_the_header_are_those_of_the_layouts(name: str, layout: struct.Struct) -> None:
    assert DEFINES[name] == layout.size


def test_every_error_code_is_explained_in_the_protocol_page() -> None:
    page = (device_dir() / "PROTOCOL.md").read_text()
    for code in messages.ErrorCode:
        if code is not messages.ErrorCode.RUNTIME:
            assert re.search(rf"^\| {code.value} \| {code.name} \|", page, re.MULTILINE), code


def test_the_runtimes_codes_fit_behind_those_of_the_link() -> None:
    assert max(Status) < 0x10000 - messages.ErrorCode.RUNTIME

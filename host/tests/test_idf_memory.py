# SPDX-License-Identifier: Apache-2.0
"""What board files promise of the ESP32-S3's memory is what the firmware's linker script and settings say."""

from __future__ import annotations

import re

import pytest

from tvhil.boards import list_boards
from tvhil.runtime import device_dir

BOARDS = {board.name: board for board in list_boards([]) if board.idf is not None}


def only(pattern: str, path: str) -> int:
    """The one number that `pattern` finds in a file of the port."""
    (found,) = re.findall(pattern, (device_dir() / "ports/esp_idf" / path).read_text(), re.MULTILINE)
    return int(found, 0)


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_the_firmware_reserves_the_arena_that_the_board_file_promises(name):
    assert only(r"^TVIT_ARENA_BYTES = (\w+);", "components/tvit/arena.ld") == BOARDS[name].memory.arena


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_the_servers_task_has_the_stack_that_the_board_file_promises(name):
    assert only(r"^CONFIG_ESP_MAIN_TASK_STACK_SIZE=(\w+)$", "sdkconfig.defaults") == BOARDS[name].memory.stack

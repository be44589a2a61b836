# SPDX-License-Identifier: Apache-2.0
"""What board files promise of the ESP32-S3's memory is what the firmware's linker script and settings say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tvhil.boards import list_boards
from tvhil.boards.startup_code import startup_calls
from tvhil.errors import InputError
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


# --- the start-up code in the arena --------------------------------------------------------------------------------

PORT = device_dir() / "ports/esp_idf"
# Flash driver, mapping of memory, clocks of flash and CPU, sleep: what arena.ld loads into the arena, or needs it.
START_ONLY = re.compile(
    r"\b(esp_flash_|spi_flash_|esp_partition_|esp_mmu_|mmu_hal_|mspi_|esp_ipc_|esp_psram_|nvs_|esp_ota_|bootloader_|"
    r"esp_cache_|cache_hal_|rtc_clk_|esp_pm_|esp_light_sleep|esp_deep_sleep)\w*\s*\("
)


def code(path: Path) -> str:
    """A source without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def test_no_source_but_memory_c_calls_what_only_the_start_may_call():
    sources = [
        *PORT.glob("main/*.c"),
        *(p for d in ("app", "runtime", "kernels") for p in (PORT / "../..").glob(f"{d}/**/*.c")),
    ]
    assert len(sources) > 30
    found = {path.name: match[0] for path in sources if (match := START_ONLY.search(code(path)))}
    assert set(found) == {"memory.c"}


def test_memory_find_ends_the_start_before_anything_else_and_zeroes_its_code():
    body = code(PORT / "main/memory.c").partition("void memory_find(")[2]
    before, end, after = body.partition("end_ipc_tasks();")
    assert end
    assert START_ONLY.search(before)
    assert not START_ONLY.search(after)
    assert after.split()[0].startswith("memset(tvit_arena,")
    main = code(PORT / "main/main.c").partition("void app_main(void) {")[2]
    assert main.index("memory_find(&port)") < min(
        main.index(name) for name in ("line_open", "cores_start", "faults_report")
    )


LINKER_SCRIPT = """
ENTRY(app_main)
SECTIONS {
  .arena.startup 0x10000 : { *flash.o(.literal .literal.* .text .text.*) *flash.o(.rodata .rodata.*) }
  .flash.text 0x20000 : { *(.literal .literal.* .text .text.* .rodata .rodata.* .data .data.* .bss .bss.*) }
}
"""
# In place of ESP-IDF: a flash driver that is overwritten, a library that may use it, the firmware.
SOURCES = {
    "flash": "int esp_flash_read(void) { return 7; }",
    "library": """
        int esp_flash_read(void);
        volatile int which;
        int harmless(void) { return 1; }
        int open_file(void) { return esp_flash_read() + 1; }
        static int of_table(void) { return esp_flash_read() + 2; }
        int (*const table[])(void) = {of_table, harmless};
        int by_pointer(void) { return table[which](); }
        int task_wdt_isr(void) { return %(interrupt)s + 3; }
    """,
    "other/library": "int esp_flash_read(void); int of_another_library_o(void) { return esp_flash_read() + 5; }",
    "memory.c": "int esp_flash_read(void); int memory_find(void) { return esp_flash_read(); }",
    "main.c": """
        int memory_find(void), harmless(void), open_file(void), by_pointer(void), of_another_library_o(void);
        int line_open(void) { return %(firmware)s + 4; }
        int app_main(void) { return memory_find() + line_open(); }
    """,
}


def linked(folder: Path, firmware: str = "harmless()", interrupt: str = "0") -> Path:
    """The map of a firmware whose line and interrupt do that."""
    tools = "xtensa-lx106-elf-"
    if not shutil.which(f"{tools}gcc"):
        pytest.skip(f"{tools}gcc is not installed: apt-get install gcc-xtensa-lx106")

    def run(*words: str) -> None:
        subprocess.run([tools + words[0], *words[1:]], cwd=folder, check=True)

    (folder / "other").mkdir()
    options = ("-Os", "-fno-inline", "-ffunction-sections", "-fdata-sections", "-mlongcalls")
    for name, text in SOURCES.items():
        (folder / f"{name}.c").write_text(text % {"firmware": firmware, "interrupt": interrupt})
        run("gcc", *options, "-c", f"{name}.c", "-o", f"{name}.o")
    run("ar", "rcs", "libmain.a", "main.c.o", "memory.c.o")
    run("ar", "qcs", "libsystem_of_a_long_name.a", "library.o", "other/library.o", "flash.o")
    (folder / "script.ld").write_text(LINKER_SCRIPT)
    run("gcc", "-nostdlib", "-Wl,--gc-sections,-u,task_wdt_isr,-Map=tvhil.map,-T,script.ld", "libmain.a",
        "libsystem_of_a_long_name.a", "-o", "tvhil.elf")  # fmt: skip
    return folder / "tvhil.map"


def test_code_that_only_the_start_calls_may_be_overwritten(tmp_path):
    assert startup_calls(linked(tmp_path)) == []


@pytest.mark.parametrize(
    ("uses", "way"),
    [
        ({"firmware": "open_file()"}, "flash:esp_flash_read < library:open_file < main:line_open"),
        (
            {"firmware": "by_pointer()"},
            "flash:esp_flash_read < library:of_table < library:table < library:by_pointer < main:line_open",
        ),
        (
            {"firmware": "of_another_library_o()"},
            "flash:esp_flash_read < library:of_another_library_o < main:line_open",
        ),
        ({"interrupt": "open_file()"}, "flash:esp_flash_read < library:open_file < library:task_wdt_isr"),
    ],
)
def test_a_firmware_that_can_call_overwritten_code_is_told_with_the_way(tmp_path, uses, way):
    (found,) = startup_calls(linked(tmp_path, **uses))
    assert found == way


def test_a_further_root_is_followed_too(tmp_path):
    assert startup_calls(linked(tmp_path), ["memory_find"]) == ["flash:esp_flash_read < memory:memory_find"]


def test_a_map_of_something_else_is_refused(tmp_path):
    map_file = linked(tmp_path)
    text = map_file.read_text()
    map_file.write_text(text.replace(".arena.startup", ".arena"))
    with pytest.raises(InputError, match=r"nothing lies in \.arena\.startup"):
        startup_calls(map_file)
    map_file.write_text(text)
    (tmp_path / "libmain.a").write_bytes(b"!<arch>\nnothing")
    with pytest.raises(InputError, match=r"libmain\.a\(.*this is no object of the linked firmware"):
        startup_calls(map_file)
    with pytest.raises(InputError, match="No such file"):
        startup_calls(tmp_path / "other.map")

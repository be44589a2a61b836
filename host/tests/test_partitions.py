# SPDX-License-Identifier: Apache-2.0
"""Partition tables: the CSV, the image in flash, and what the board files say of them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvhil.boards import list_boards, load_board
from tvhil.boards.board import BoardFileError
from tvhil.boards.flash_plan import board_partitions
from tvhil.boards.idf_build import project_dir
from tvhil.boards.partitions import Partition, parse_partition_image, partition_image, read_partitions
from tvhil.errors import InputError

CHIPS = [board.name for board in list_boards([]) if board.flash is not None]

# From ESP-IDF's gen_esp32part.py (v5.5.1) for partitions/16MB.csv: the entries, and the SHA-256 of the whole image.
ENTRIES_16MB = bytes.fromhex(
    "aa500000000001000000100066616374 6f727900000000000000000000000000"
    "aa500140000011000000ef006d6f6465 6c000000000000000000000002000000"
)
IMAGES = {
    "4MB": "df95a7954270077ac6678084efe0f6fb771a965fa15daa322972ffdcacd1dada",
    "8MB": "63efba86211b113bfe6bf825720b3905b46cf00a2f4d060cb1e394a61ddfdc57",
    "16MB": "d2c790054bf4e373fe0d7b5eeb8a8d084a720771693541899b5e2d3daed7131d",
    "32MB": "14ea394dff54a9f1aaac24c61dcb1c5187890e8a652c776e27d87aa867080627",
}


@pytest.mark.parametrize("size", IMAGES)
def test_the_image_is_that_of_espressifs_generator_byte_for_byte(size):
    partitions = read_partitions(project_dir(load_board("esp32s3")) / "partitions" / f"{size}.csv")
    assert hashlib.sha256(partition_image(partitions)).hexdigest() == IMAGES[size]


def test_entries_marks_and_padding_lie_where_the_boot_loader_looks():
    image = partition_image(board_partitions(load_board("esp32s3")))
    assert len(image) == 0xC00
    assert image[:64] == ENTRIES_16MB
    assert image[64:80] == b"\xeb\xeb" + b"\xff" * 14
    assert image[80:96] == hashlib.md5(ENTRIES_16MB).digest()
    assert set(image[96:]) == {0xFF}


@st.composite
def tables(draw):
    """Partitions one behind the other."""
    at, table = 0x10000, []
    for i in range(draw(st.integers(1, 20))):
        size = 0x10000 * draw(st.integers(1, 40))
        kind = draw(st.integers(0, 1))
        table.append(Partition(f"part{i}", kind, draw(st.integers(0, 255)), at, size, draw(st.integers(0, 3))))
        at += size
    return table


@given(tables())
def test_what_was_written_is_read_again(table):
    assert parse_partition_image(partition_image(table)) == table


@given(tables(), st.data())
def test_a_damaged_table_is_refused(table, data):
    image = bytearray(partition_image(table))
    image[data.draw(st.integers(0, 32 * len(table) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InputError, match="partition table"):
        parse_partition_image(bytes(image))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model, data, 0x40, 0x110000", "the size '' is not a number"),
        ("model, data, 0x40, , 1M", "the offset '' is not a number"),
        ("model, date, 0x40, 0x110000, 1M", "type 'date' is none of app, data"),
        ("model, data, ox40, 0x110000, 1M", "subtype 'ox40' is not a number"),
        ("model, data, 0x40, 0x110000, 1M, secret", "flag 'secret' is none of"),
        ("model, data, 0x40, 0x110001, 1M", "must begin at a multiple of 0x1000"),
        ("a_model_with_a_long_name, data, 0x40, 0x110000, 1M", "at most 16 bytes"),
        ("factory, app, factory, 0x110000, 1M", "two partitions 'factory'"),
        ("model, data, 0x40, 0x100000, 1M", "begins at 0x100000, inside factory"),
        ("model, data, 0x40, 0x110000, 8192M", "more than 32 bits"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path, line, message):
    path = tmp_path / "p.csv"
    path.write_text(f"# Name, Type\nfactory, app, factory, 0x10000, 1M\n\n{line}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_partitions(path)
    assert f"{path}, line 4" in str(caught.value)


@pytest.mark.parametrize("name", CHIPS)
def test_the_partitions_of_a_board_fit_its_flash_and_its_memory_table(name):
    board = load_board(name)
    by_name = {one.name: one for one in board_partitions(board)}
    assert by_name["model"].size == board.memory.flash
    assert (by_name["model"].type, by_name["model"].subtype) == (1, 0x40)
    assert by_name["model"].offset % 0x10000 == 0, "mapped as it lies"
    assert by_name["factory"].type == 0
    assert board.flash.table + 0x1000 <= by_name["factory"].offset


@pytest.mark.parametrize("name", CHIPS)
def test_the_defaults_of_a_board_name_its_flash_size_and_partition_table(name):
    board = load_board(name)
    text = "".join((project_dir(board) / file).read_text() for file in board.idf.defaults)
    assert f"CONFIG_ESPTOOLPY_FLASHSIZE_{board.flash.size >> 20}MB=y" in text
    assert f'CONFIG_PARTITION_TABLE_CUSTOM_FILENAME="{board.flash.partitions}"' in text
    assert ("CONFIG_SPIRAM=y" in text) == (board.memory.psram > 0)
    assert f'CONFIG_IDF_TARGET="{board.idf.target}"' in text


def test_partitions_beyond_the_flash_are_refused(tmp_path):
    text = load_board("esp32s3").path.read_text().replace("size = 0x100_0000", "size = 0x80_0000")
    path = tmp_path / "esp32s3.toml"
    path.write_text(text)
    with pytest.raises(BoardFileError, match=r"end at 16,777,216, size is 8,388,608"):
        board_partitions(load_board(path))

# SPDX-License-Identifier: Apache-2.0
"""Properties of the PIE model that need no golden vectors."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pie_model_library import (
    BASE,
    BY_NAME,
    MASK32,
    MEMORY,
    MODEL,
    OPCODES,
    REPOSITORY,
    STATUS_LOAD_ERROR,
    STATUS_OK,
    STATUS_STORE_ERROR,
    UNDEFINED,
    Machine,
    Model,
    open_model,
    pie_tables,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=300)
FEW = settings(SETTINGS, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
MIDDLE = BASE + MEMORY // 2
MEMORY_OPCODES = [opcode for opcode in OPCODES if opcode.load_bytes or opcode.store_bytes]
INDEXED = ("ee.ldxq.32", "ee.stxq.32")  # their address has a lane of qs0 in it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model("sanitized", tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def no_undefined_behaviour(capfd: pytest.CaptureFixture[str]) -> Any:
    yield
    assert "runtime error" not in capfd.readouterr().err


def code(mnemonic: str, **operands: int) -> bytes:
    encoded: bytes = pie_tables.encode(BY_NAME[mnemonic], operands)
    return encoded


def random_operands(opcode: Any, generator: random.Random) -> dict[str, int]:
    """Any operands the encoding has; vector and FPU registers pairwise distinct, as the assembler wants them."""
    values: dict[str, int] = {}
    vectors, floats = generator.sample(range(8), 8), generator.sample(range(16), 16)
    for name in opcode.operands:
        bits = max(low + width for piece, _, width, low in opcode.pieces if piece == name)
        if name in pie_tables.VECTOR_MEMBERS:
            values[name] = vectors.pop()
        elif name in pie_tables.FLOAT_MEMBERS:
            values[name] = floats.pop()
        elif name in pie_tables.IMMEDIATES:
            unit, signed = pie_tables.IMMEDIATES[name]
            values[name] = unit * (generator.randrange(1 << bits) - ((1 << bits - 1) if signed else 0))
        else:
            values[name] = generator.randrange(1 << bits)
    return values


def random_machine(model: Model, generator: random.Random) -> Machine:
    """Every register random, lanes often at a limit."""
    machine = model.machine()
    for n in range(8):
        machine.q[n][:] = bytes(generator.choice((generator.randrange(256), 0, 0x7F, 0x80, 0xFF)) for _ in range(16))
    for name in ("qacc_l", "qacc_h", "ua_state"):
        getattr(machine, name)[:] = generator.randbytes(len(getattr(machine, name)))
    machine.accx[:] = generator.randrange(-(2**39), 2**39).to_bytes(8, "little", signed=True)
    machine.sar, machine.sar_byte = generator.randrange(64), generator.randrange(16)
    machine.fft_bit_width = generator.randrange(16)
    machine.gpio_out, machine.gpio_in = generator.randrange(256), generator.randrange(256)
    for n in range(16):
        machine.ar[n], machine.fr[n] = generator.randrange(2**32), generator.randrange(2**32)
    model.memory[:] = generator.randbytes(MEMORY)
    return machine


def point(machine: Machine, operands: dict[str, int], address: int) -> None:
    """Let the instruction's pointer be this address."""
    machine.ar[operands["as"]] = address & MASK32
    if "qs0" in operands:
        machine.q[operands["qs0"]][:] = bytes(16)


def copy(machine: Machine) -> Machine:
    return Machine.from_buffer_copy(machine)


def changed(before: Machine, after: Machine) -> list[int]:
    """The masks of pie_usage for what differs: q, a, f, state."""
    q = sum(1 << n for n in range(8) if list(before.q[n]) != list(after.q[n]))
    a = sum(1 << n for n in range(16) if before.ar[n] != after.ar[n])
    f = sum(1 << n for n in range(16) if before.fr[n] != after.fr[n])
    names = ("accx", "qacc_l", "qacc_h", "sar", "sar_byte", "ua_state", "fft_bit_width", "gpio_out", "gpio_in")
    values = [[getattr(m, name) for name in names] for m in (before, after)]
    plain = [[value if isinstance(value, int) else list(value) for value in row] for row in values]
    return [q, a, f, sum(1 << i for i, (x, y) in enumerate(zip(*plain, strict=True)) if x != y)]


# ---- the table -----------------------------------------------------------------------------------------------


def test_the_generated_tables_are_current() -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "pie_tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ee.x | qz | 11 qz[2:1] 1101 qz[0] 1111111 00 0 0 010 | logic | - | - | qz:1 | -", "23 bits"),
        ("ee.x | qz | 11 qz[2:1] 1101 qz[1] 1111111 0000 0100 | logic | - | - | qz:1 | -", "bit twice"),
        ("ee.x | qz | 1100 1101 0 1111111 0000 0100 | logic | - | - | qz:1 | -", "fields"),
        ("ee.x | qz | 11 qz[2:1] 1101 qz[0] 1111111 0000 0100 | logic | - | - | qq:1 | -", "unknown register"),
        ("ee.x | qz | 11 qz[2:1] 1101 qz[0] 1111111 0000 0100 | logic | l3 | - | qz:1 | -", "memory access"),
        ("ee.x | qz, qx | 11 qz[2:1] 1101 qz[0] 1111111 qx[2:1] 0 qx[0] 0100 | logic | - | - | qz:1 | -", "in common"),
    ],
)
def test_a_wrong_line_of_the_table_is_refused(tmp_path: Path, line: str, complaint: str) -> None:
    table = tmp_path / "opcodes.txt"
    table.write_text(
        "ee.notq | qz, qx | 11 qz[2:1] 1101 qz[0] 1111111 qx[2:1] 0 qx[0] 0100 | logic | - | - | - | -\n" + line
    )
    with pytest.raises(pie_tables.TableError, match=complaint):
        pie_tables.read_opcodes(table)


def test_the_model_numbers_its_258_opcodes_as_the_table_does(model: Model) -> None:
    assert len(OPCODES) == 258
    assert sum(op.mnemonic.startswith("ee.") for op in OPCODES) == 217
    model.library.driver_mnemonic.restype = ctypes.c_char_p
    assert [model.library.driver_mnemonic(n) for n in range(258)] == [op.mnemonic.encode() for op in OPCODES]
    assert model.library.driver_mnemonic(258) is None


# ---- decoding ------------------------------------------------------------------------------------------------


def assembly(opcode: Any, operands: dict[str, int]) -> str:
    """What objdump prints: small numbers in decimal, others as a hexadecimal word."""

    def text(name: str, value: int) -> str:
        if name in pie_tables.REGISTERS:
            return f"{name[0]}{value}"
        return str(value) if -256 < value < 256 else f"{value & MASK32:#x}"

    return " ".join([opcode.mnemonic, ", ".join(text(name, operands[name]) for name in opcode.operands)]).rstrip()


@FEW
@given(SEEDS)
def test_every_opcode_decodes_from_its_own_encoding(model: Model, seed: int) -> None:
    generator = random.Random(seed)
    for number, opcode in enumerate(OPCODES):
        operands = random_operands(opcode, generator)
        encoded = pie_tables.encode(opcode, operands)
        assert model.disassemble(encoded) == (number, len(encoded), assembly(opcode, operands))


@FEW
@given(SEEDS)
def test_words_that_no_line_of_the_table_matches_are_undefined(model: Model, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(200):
        word = generator.randrange(2**32)
        if generator.random() < 0.7:  # near an instruction: one or two bits off
            opcode = generator.choice(OPCODES)
            word = (word & ~opcode.mask & MASK32 | opcode.match) ^ 1 << generator.randrange(32)
        four = word & 14 == 14
        seen = word if four else word & 0xFFFFFF
        wanted = [n for n, op in enumerate(OPCODES) if (op.length == 4) == four and seen & op.mask == op.match]
        opcode_number, length, _ = model.disassemble(word.to_bytes(4, "little"))
        assert opcode_number == (wanted[0] if wanted else UNDEFINED)
        assert length == (0 if not wanted else 4 if four else 3)


@pytest.mark.parametrize("number", [19, 31, 231, 232, 233, 255])
def test_user_registers_of_others_are_not_decoded(model: Model, number: int) -> None:
    rur, wur = 0xE30000 | number << 4 | 9 << 12, 0xF30000 | number << 8 | 9 << 4
    assert model.disassemble(rur.to_bytes(3, "little"))[0] == UNDEFINED
    assert model.disassemble(wur.to_bytes(3, "little"))[0] == UNDEFINED


def test_a_short_text_buffer_is_cut_and_terminated(model: Model) -> None:
    encoded = code("ee.vld.128.ip", qu=3, **{"as": 7}, imm16=-2048) + b"\0"
    whole = b"ee.vld.128.ip q3, a7, 0xfffff800"
    for size in range(1, 40):
        text = ctypes.create_string_buffer(b"\x7f" * 48, 48)
        model.library.driver_disassemble(encoded, ctypes.byref(ctypes.c_uint32()), text, size)
        assert text.raw == (whole[: size - 1] + b"\0").ljust(48, b"\x7f") or size > len(whole)
        assert text.value == whole[: size - 1]
        assert text.raw[size:] == b"\x7f" * (48 - size)


# ---- what every instruction obeys ----------------------------------------------------------------------------


@FEW
@given(SEEDS)
def test_an_instruction_writes_only_what_its_facts_say(model: Model, seed: int) -> None:
    generator = random.Random(seed)
    for opcode in generator.sample(OPCODES, 40):
        operands = random_operands(opcode, generator)
        encoded = pie_tables.encode(opcode, operands)
        before = random_machine(model, generator)
        memory = bytes(model.memory)
        if opcode in MEMORY_OPCODES:
            point(before, operands, MIDDLE + generator.randrange(-64, 64))
        after = copy(before)
        assert model.run(after, encoded) == STATUS_OK
        usage = model.usage(encoded)
        for difference, at in zip(changed(before, after), range(0, 16, 4), strict=True):
            assert difference & ~(usage[at + 2] | usage[at + 3]) == 0, opcode.mnemonic
        stored = [i for i, (x, y) in enumerate(zip(memory, model.memory.raw, strict=True)) if x != y]
        start = after.access_address - BASE
        assert all(start <= i < start + opcode.store_bytes for i in stored), opcode.mnemonic


#: Instructions that keep a part of what they write, which the manual's table does not count as a read.
PARTIAL = ("ee.movi.32.q", "ee.ldxq.32", "ee.vld.l", "ee.vld.h", "ee.cmul", "ee.fft.cmul", "ee.fft.ams")


@FEW
@given(SEEDS)
def test_a_result_depends_only_on_what_the_facts_say_is_read(model: Model, seed: int) -> None:
    generator = random.Random(seed)
    for opcode in generator.sample(OPCODES, 40):
        operands = random_operands(opcode, generator)
        encoded = pie_tables.encode(opcode, operands)
        one = random_machine(model, generator)
        if opcode in MEMORY_OPCODES:
            point(one, operands, MIDDLE + generator.randrange(-64, 64))
        memory = bytes(model.memory)
        usage = model.usage(encoded)
        read = [usage[at] | usage[at + 1] for at in range(0, 16, 4)]
        partial = opcode.mnemonic.startswith(PARTIAL)
        if partial:
            read[0] |= usage[2] | usage[3]
        other = random_machine(model, generator)
        for n in range(16):
            if read[1] >> n & 1:
                other.ar[n] = one.ar[n]
            if read[2] >> n & 1:
                other.fr[n] = one.fr[n]
        for n in range(8):
            if read[0] >> n & 1:
                other.q[n][:] = one.q[n][:]
        state = ("accx", "qacc_l", "qacc_h", "sar", "sar_byte", "ua_state", "fft_bit_width", "gpio_out", "gpio_in")
        for bit, name in enumerate(state):
            if read[3] >> bit & 1:
                setattr(other, name, getattr(one, name))
        results = []
        for machine in (one, other):
            model.memory[:] = memory
            assert model.run(machine, encoded) == STATUS_OK
            results.append(bytes(model.memory))
        written = [usage[at + 2] | usage[at + 3] for at in range(0, 16, 4)]
        assert results[0] == results[1], opcode.mnemonic
        for difference, mask in zip(changed(one, other), written, strict=True):
            assert difference & mask == 0, opcode.mnemonic


THREE_VECTORS = [op for op in OPCODES if {"qz", "qx", "qy"} <= set(op.operands) and "sel" not in op.operands]


@FEW
@given(SEEDS)
def test_operands_are_read_before_anything_is_written(model: Model, seed: int) -> None:
    """With registers shared, the result is that of the same values in registers of their own."""
    generator = random.Random(seed)
    for opcode in generator.sample(THREE_VECTORS, 10):
        apart = random_operands(opcode, generator)
        shared = dict(apart, qx=apart["qz"], qy=generator.choice((apart["qz"], apart.get("qu", apart["qz"]))))
        together = random_machine(model, generator)
        separate = copy(together)
        for name in ("qx", "qy"):
            separate.q[apart[name]][:] = together.q[shared[name]][:]
        memory = bytes(model.memory)
        stored = []
        for machine, operands in ((together, shared), (separate, apart)):
            model.memory[:] = memory
            if "as" in operands:
                machine.ar[operands["as"]] = MIDDLE
            assert model.run(machine, pie_tables.encode(opcode, operands)) == STATUS_OK
            stored.append(bytes(model.memory))
        for name in {"qz", "qu"} & set(apart):
            assert list(together.q[apart[name]]) == list(separate.q[apart[name]]), opcode.mnemonic
        assert stored[0] == stored[1]


@pytest.mark.parametrize("opcode", MEMORY_OPCODES, ids=lambda opcode: opcode.mnemonic)
def test_a_failed_access_is_reported_and_changes_nothing(model: Model, opcode: Any) -> None:
    generator = random.Random(1)
    operands = random_operands(opcode, generator)
    before = random_machine(model, generator)
    memory = bytes(model.memory)
    point(before, operands, BASE - 0x1000)
    after = copy(before)
    wanted = STATUS_LOAD_ERROR if opcode.load_bytes else STATUS_STORE_ERROR
    assert model.run(after, pie_tables.encode(opcode, {**operands, "imm16": 0})) == wanted
    assert changed(before, after) == [0, 0, 0, 0]
    assert bytes(model.memory) == memory
    assert after.access_address == BASE - 0x1000


@pytest.mark.parametrize("opcode", MEMORY_OPCODES, ids=lambda opcode: opcode.mnemonic)
def test_addresses_are_masked_and_misaligned_ones_reported(model: Model, opcode: Any) -> None:
    size = opcode.load_bytes or opcode.store_bytes
    reported = size > 1 and "PIE_UNALIGNED_OK" not in opcode.flags and opcode.mnemonic not in ("ld.qr", "st.qr")
    for offset in (0, 1, size - 1, size):
        generator = random.Random(offset)
        operands = {**random_operands(opcode, generator), "imm16": 16}
        machine = random_machine(model, generator)
        point(machine, operands, MIDDLE + offset)
        moved = 16 if opcode.mnemonic in ("ld.qr", "st.qr") else 0  # their offset comes before the access
        assert model.run(machine, pie_tables.encode(opcode, operands)) == STATUS_OK
        assert machine.access_address == (MIDDLE + offset & -size) + moved
        misaligned = offset % size != 0 and (reported or bool(moved))
        assert machine.misaligned_count == int(misaligned)
        if misaligned:
            assert (machine.misaligned_address, machine.misaligned_size) == (MIDDLE + offset + moved, size)


def test_a_windowed_register_file_wraps_around(model: Model) -> None:
    machine = model.machine()
    machine.ar_base, machine.ar_mask = 60, 63
    machine.ar[60 + 2], machine.ar[5 - 4] = MIDDLE, 48  # a2 and a5
    assert model.run(machine, code("ee.vld.128.xp", qu=1, ad=5, **{"as": 2})) == STATUS_OK
    assert machine.ar[62] == MIDDLE + 48
    machine.q[1][:] = bytes(range(16))
    assert model.run(machine, code("ee.movi.32.a", qs0=1, at=13, lane=1)) == STATUS_OK
    assert machine.ar[13 - 4] == 0x07060504


# ---- the accumulators, against integers of Python -------------------------------------------------------------


def lanes_of(machine: Machine, bits: int) -> list[int]:
    """QACC as signed lanes of 20 or 40 bits."""
    result = []
    for half in (machine.qacc_l, machine.qacc_h):
        value = int.from_bytes(bytes(half), "little")
        for i in range(160 // bits):
            lane = value >> bits * i & (1 << bits) - 1
            result.append(lane - (lane >> bits - 1 << bits))
    return result


def set_lanes(machine: Machine, lanes: list[int], bits: int) -> None:
    count = 160 // bits
    for half, part in ((machine.qacc_l, lanes[:count]), (machine.qacc_h, lanes[count:])):
        half[:] = sum((lane & (1 << bits) - 1) << bits * i for i, lane in enumerate(part)).to_bytes(20, "little")


def elements(vector: Any, kind: str) -> list[int]:
    size, raw = int(kind[1:]) // 8, bytes(vector)
    return [int.from_bytes(raw[i : i + size], "little", signed=kind[0] == "s") for i in range(0, 16, size)]


def clamp(value: int, bits: int, signed: bool = True) -> int:
    low, high = (-1 << bits - 1, (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return min(max(value, low), high)


def near_limits(generator: random.Random, bits: int, count: int) -> list[int]:
    top = 1 << bits - 1
    near = (top - 1 - generator.randrange(20000), -top + generator.randrange(20000), generator.randrange(-top, top))
    return [generator.choice(near) for _ in range(count)]


@SETTINGS
@given(SEEDS, st.sampled_from(["s8", "u8", "s16", "u16"]), st.sampled_from([0, 1, 2]))
def test_qacc_lanes_accumulate_and_saturate_one_by_one(model: Model, seed: int, kind: str, form: int) -> None:
    generator = random.Random(seed)
    bits = 20 if kind.endswith("8") else 40
    machine = random_machine(model, generator)
    lanes = near_limits(generator, bits, 320 // bits)
    set_lanes(machine, lanes, bits)
    machine.qacc_form = form
    x, y = elements(machine.q[3], kind), elements(machine.q[5], kind)
    signed = kind[0] == "s"
    before = lanes if signed else [lane & (1 << bits) - 1 for lane in lanes]
    wanted = [clamp(lane + a * b, bits, signed) & (1 << bits) - 1 for lane, a, b in zip(before, x, y, strict=True)]
    assert model.run(machine, code(f"ee.vmulas.{kind}.qacc", qx=3, qy=5)) == STATUS_OK
    assert [lane & (1 << bits) - 1 for lane in lanes_of(machine, bits)] == wanted


@SETTINGS
@given(SEEDS, st.sampled_from(["s8", "s16"]))
def test_the_scalar_form_multiplies_every_lane_by_the_chosen_one(model: Model, seed: int, kind: str) -> None:
    generator = random.Random(seed)
    bits, count = (20, 16) if kind == "s8" else (40, 8)
    machine = random_machine(model, generator)
    lanes = near_limits(generator, bits, count)
    set_lanes(machine, lanes, bits)
    sel = generator.randrange(count)
    x, scalar = elements(machine.q[3], kind), elements(machine.q[5], kind)[sel]
    machine.ar[4] = MIDDLE
    following = model.memory.raw[MEMORY // 2 : MEMORY // 2 + 16]
    encoded = code(f"ee.vsmulas.{kind}.qacc.ld.incp", qu=3, qx=3, qy=5, sel=sel, **{"as": 4})
    assert model.run(machine, encoded) == STATUS_OK
    assert lanes_of(machine, bits) == [clamp(lane + a * scalar, bits) for lane, a in zip(lanes, x, strict=True)]
    assert (bytes(machine.q[3]), machine.ar[4]) == (following, MIDDLE + 16)


@SETTINGS
@given(SEEDS, st.sampled_from(["s8", "u8", "s16", "u16"]))
def test_accx_takes_the_sum_of_all_products_and_saturates_once(model: Model, seed: int, kind: str) -> None:
    generator = random.Random(seed)
    machine = random_machine(model, generator)
    value = near_limits(generator, 40, 1)[0]
    machine.accx[:] = value.to_bytes(8, "little", signed=True)
    signed = kind[0] == "s"
    start = value if signed else value & (1 << 40) - 1
    products = [a * b for a, b in zip(elements(machine.q[3], kind), elements(machine.q[5], kind), strict=True)]
    assert model.run(machine, code(f"ee.vmulas.{kind}.accx", qx=3, qy=5)) == STATUS_OK
    wanted = clamp(start + sum(products), 40, signed)
    got = int.from_bytes(bytes(machine.accx), "little", signed=True)
    assert -(2**39) <= got < 2**39
    assert got & (1 << 40) - 1 == wanted & (1 << 40) - 1


@SETTINGS
@given(SEEDS, st.sampled_from([0, 1, 2]), st.booleans())
def test_qacc_survives_a_round_trip_through_memory_and_through_user_registers(
    model: Model, seed: int, form: int, registers: bool
) -> None:
    machine = random_machine(model, random.Random(seed))
    machine.qacc_form = form
    low, high = bytes(machine.qacc_l), bytes(machine.qacc_h)
    names = [f"qacc_{half}_{n}" for half in "lh" for n in range(5)]
    parts = ["qacc_l.l.128", "qacc_l.h.32", "qacc_h.l.128", "qacc_h.h.32"]
    if registers:
        out = [code(f"rur.{name}", at=n) for n, name in enumerate(names)]
        back = [code(f"wur.{name}", at=n) for n, name in enumerate(names)]
    else:
        out = [code(f"ee.st.{part}.ip", **{"as": 2, "imm16" if part.endswith("128") else "imm4": 16}) for part in parts]
        back = [
            code(f"ee.ld.{part}.ip", **{"as": 3, "imm16" if part.endswith("128") else "imm4": 16}) for part in parts
        ]
        machine.ar[2] = machine.ar[3] = MIDDLE
    if registers:
        random.Random(seed).shuffle(back)
    assert model.run(machine, b"".join([*out, code("ee.zero.qacc"), *back])) == STATUS_OK
    assert (bytes(machine.qacc_l), bytes(machine.qacc_h)) == (low, high)
    if registers:
        words = [machine.ar[n].to_bytes(4, "little") for n in range(10)]
        assert b"".join(words) == low + high
    else:
        stored = model.memory.raw[MEMORY // 2 : MEMORY // 2 + 64]
        assert stored[:20] + stored[32:52] == low + high


@SETTINGS
@given(SEEDS, st.integers(0, MASK32), st.sampled_from([8, 16]))
def test_srcmb_leaves_the_shifted_lanes_and_saturates_its_result(
    model: Model, seed: int, shift: int, width: int
) -> None:
    bits, mask = (20, 31) if width == 8 else (40, 63)
    machine = random_machine(model, random.Random(seed))
    machine.ar[7] = shift
    wanted = [lane >> (shift & mask) for lane in lanes_of(machine, bits)]
    assert model.run(machine, code(f"ee.srcmb.s{width}.qacc", qu=6, sel=0, **{"as": 7})) == STATUS_OK
    assert lanes_of(machine, bits) == wanted
    assert elements(machine.q[6], f"s{width}") == [clamp(lane, width) for lane in wanted]


@pytest.mark.parametrize(
    ("name", "bits"),
    [("accx_0", 32), ("accx_1", 8), ("gpio_out", 8), ("sar_byte", 4), ("fft_bit_width", 4), ("ua_state_2", 32)],
)
def test_a_user_register_keeps_as_many_bits_as_it_has(model: Model, name: str, bits: int) -> None:
    for value in (0, MASK32, 0x89ABCDEF):
        machine = model.machine()
        machine.ar[4] = value
        assert model.run(machine, code(f"wur.{name}", at=4) + code(f"rur.{name}", at=5)) == STATUS_OK
        assert machine.ar[5] == value & (1 << bits) - 1


# ---- opcodes without golden vectors: worked by hand from the manual's formulas ----------------------------------


def lanes16(*values: int) -> bytes:
    return b"".join((value & 0xFFFF).to_bytes(2, "little") for value in values)


@pytest.mark.parametrize(
    ("mnemonic", "pair", "address_step"),
    [
        ("ee.fft.ams.s16.ld.incp.uaup", 0, 16),
        ("ee.fft.ams.s16.ld.incp", 1, 16),
        ("ee.fft.ams.s16.ld.r32.decp", 2, -16),
        ("ee.fft.ams.s16.st.incp", 3, 16),
    ],
)
@pytest.mark.parametrize(
    ("sel", "total", "difference"),
    [
        # x = 100 + 60i, y = 40 + 20i, m = 7 - 3i, SAR = 2: s = 140 + 40i, t = 60 + 80i;
        # sel 0: t m = 660 + 380i -> 165 + 95i; sel 1: t conj(m) = 180 + 740i -> 45 + 185i.
        (0, (140 + 165, 40 + 95), (140 - 165, 95 - 40)),
        (1, (140 + 45, 40 + 185), (140 - 45, 185 - 40)),
    ],
)
def test_add_multiply_subtract_works_on_its_pair(
    model: Model,
    mnemonic: str,
    pair: int,
    address_step: int,
    sel: int,
    total: tuple[int, int],
    difference: tuple[int, int],
) -> None:
    machine = model.machine()
    machine.sar, machine.sar_byte = 2, 5
    data = bytes(range(100, 116))
    model.memory[MEMORY // 2 : MEMORY // 2 + 16] = data
    machine.ua_state[:] = bytes(range(16))
    for q, values in ((1, (100, 60)), (2, (40, 20)), (3, (7, -3))):
        machine.q[q][:] = lanes16(*([9, 9] * pair), *values, *([9, 9] * (3 - pair)))
    machine.q[6][:] = lanes16(-3, 2, 5, -7, 11, 13, 17, 19)
    kept = lanes16(*[1] * 8)
    machine.q[4][:] = machine.q[5][:] = kept
    machine.ar[2] = MIDDLE
    machine.ar[8] = 0x8003_0005  # lanes 5 and -32765
    operands = {"as": 2, "at": 8, "qu": 6, "qz": 4, "qz1": 5, "qx": 1, "qy": 2, "qm": 3, "sel": sel}
    assert model.run(machine, code(mnemonic, **operands)) == STATUS_OK

    def with_pair(values: tuple[int, int]) -> bytes:
        return kept[: 4 * pair] + lanes16(*values) + kept[4 * pair + 4 :]

    assert bytes(machine.q[5]) == with_pair(difference)
    assert machine.ar[2] == (MIDDLE + address_step) & MASK32
    if pair == 3:  # the store form: the sums go to an address register
        assert machine.ar[8] == int.from_bytes(lanes16(*total), "little")
        lanes = (5, -32765, -3, 2, 5, -7, 11, 13)
        wanted = lanes if sel else tuple(lane >> 1 for lane in lanes)
        assert model.memory.raw[MEMORY // 2 : MEMORY // 2 + 16] == lanes16(*wanted)
        return
    assert bytes(machine.q[4]) == with_pair(total)
    if pair == 0:
        assert bytes(machine.q[6]) == (bytes(range(16)) + data)[5:21]
        assert bytes(machine.ua_state) == data
    else:
        reverse = b"".join(data[i : i + 4] for i in (12, 8, 4, 0))
        assert bytes(machine.q[6]) == (reverse if pair == 2 else data)


@pytest.mark.parametrize(
    ("sel", "product"),
    # x3 = 70 - 80i, y3 = 9 + 10i, SAR = 1: x conj(y) = -170 - 1420i, x y = 1430 - 20i
    [(6, (-85, -710)), (7, (715, -10))],
)
@pytest.mark.parametrize("upd", [0, 1, 2])
def test_the_storing_complex_multiplication_splices_its_vector(
    model: Model, sel: int, product: tuple[int, int], upd: int
) -> None:
    machine = model.machine()
    machine.sar = 1
    x, v = (10, -20, 30, -40, 50, -60, 70, -80), (1, 2, 3, 4, 5, 6, 7, 8)
    machine.q[1][:], machine.q[2][:], machine.q[3][:] = lanes16(*x), lanes16(3, 4, -5, 6, 7, -8, 9, 10), lanes16(*v)
    machine.ar[2], machine.ar[3] = MIDDLE, 48
    encoded = code("ee.fft.cmul.s16.st.xp", qx=1, qy=2, qu=3, ad=3, sel=sel, upd=upd, sar=2, **{"as": 2})
    assert model.run(machine, encoded) == STATUS_OK
    shifted = [lane >> 2 for lane in x]
    first = {0: v[:6], 1: (*shifted[:4], *v[4:6]), 2: (*shifted[:2], *v[4:6], *shifted[2:4])}[upd]
    assert model.memory.raw[MEMORY // 2 : MEMORY // 2 + 16] == lanes16(*first, *product)
    assert machine.ar[2] == MIDDLE + 48


def test_fast_gpio_sets_clears_masks_and_reads(model: Model) -> None:
    machine = model.machine()
    machine.gpio_out, machine.gpio_in = 0b1010_0101, 0x5C
    machine.ar[4], machine.ar[5] = 0xFFFF_FF0F, 0xFFFF_FF3C
    steps = [
        (code("ee.set_bit_gpio_out", imm1=0b0101_0000), 0b1111_0101),
        (code("ee.clr_bit_gpio_out", imm1=0b1000_0001), 0b0111_0100),
        (code("ee.wr_mask_gpio_out", ax=5, **{"as": 4}), 0b0100_1100),
    ]
    for encoded, wanted in steps:
        assert model.run(machine, encoded) == STATUS_OK
        assert machine.gpio_out == wanted
    assert model.run(machine, code("ee.get_gpio_in", at=6)) == STATUS_OK
    assert machine.ar[6] == 0x5C


# ---- static facts ---------------------------------------------------------------------------------------------


def test_the_facts_name_registers_and_stages(model: Model) -> None:
    """Rows of table 1.7-2 of the Technical Reference Manual."""
    accumulator = 1 << pie_tables.STATES.index("QACC_L") | 1 << pie_tables.STATES.index("QACC_H")
    usage = model.usage(code("ee.vsmulas.s8.qacc.ld.incp", qu=2, qx=3, qy=5, sel=9, **{"as": 4}))
    assert usage == [0b101000, 0, 0, 0b100, 1 << 4, 0, 1 << 4, 0, 0, 0, 0, 0, 0, accumulator, 0, accumulator]
    usage = model.usage(code("ee.srcmb.s8.qacc", qu=6, sel=0, **{"as": 7}))
    assert usage == [0, 0, 1 << 6, 0, 1 << 7, 0, 0, 0, 0, 0, 0, 0, accumulator, 0, accumulator, 0]
    usage = model.usage(code("ee.ldf.64.xp", f1=9, f0=3, ad=5, **{"as": 6}))
    assert usage == [0, 0, 0, 0, 1 << 5 | 1 << 6, 0, 1 << 6, 0, 0, 0, 0, 1 << 9 | 1 << 3, 0, 0, 0, 0]
    usage = model.usage(code("ee.cmul.s16.st.incp", qu=1, qz=2, qx=3, qy=4, sel=0, **{"as": 6}))
    sar = 1 << pie_tables.STATES.index("SAR")
    assert usage == [0b11000, 0b10, 0, 0b100, 1 << 6, 0, 1 << 6, 0, 0, 0, 0, 0, sar, 0, 0, 0]


# ---- the target ----------------------------------------------------------------------------------------------


def test_the_model_compiles_for_a_bare_xtensa_core(tmp_path: Path) -> None:
    compiler = shutil.which("xtensa-lx106-elf-gcc")
    if not compiler:
        pytest.skip("xtensa-lx106-elf-gcc is not installed (make setup)")
    flags = ["-std=c11", "-ffreestanding", "-O2", "-Wall", "-Wextra", "-Werror", "-mlongcalls", "-DPIE_DIRECT_MEMORY"]
    for source in sorted(MODEL.glob("*.c")):
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")], check=True)
    nm = subprocess.run(
        ["xtensa-lx106-elf-nm", "--undefined-only", *map(str, sorted(tmp_path.glob("*.o")))],
        check=True,
        capture_output=True,
        text=True,
    )
    wanted = {line.split()[1] for line in nm.stdout.splitlines() if line.startswith(" ")}
    assert {name for name in wanted if not name.startswith("pie_")} <= {"memcpy", "memset"}  # no division, no libgcc

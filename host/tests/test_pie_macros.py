# SPDX-License-Identifier: Apache-2.0
"""The assembler macros of device/kernels/pie: the bytes of Espressif's assembler, errors for what has no encoding."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from lx7sim_assembler import Assembler
from pie_model_library import BY_NAME, OPCODES, REPOSITORY, open_model, pie_tables, shared_file

PIE = REPOSITORY / "device" / "kernels" / "pie"
ASSEMBLER = "xtensa-lx106-elf-as"

pytestmark = pytest.mark.skipif(not shutil.which(ASSEMBLER), reason=f"{ASSEMBLER} is not installed (make setup)")


def assemble(source: str, folder: Path) -> tuple[bytes, str]:
    """The bytes of the text section, and what the assembler said."""
    text, target, binary = folder / "source.s", folder / "source.o", folder / "source.bin"
    text.write_text(f'.include "pie.inc"\n.text\n.begin no-transform\n{source}\n.end no-transform\n')
    result = subprocess.run(
        [ASSEMBLER, f"-I{PIE}", str(text), "-o", str(target)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        return b"", result.stderr
    copy = ["xtensa-lx106-elf-objcopy", "-O", "binary", "-j", ".text", str(target), str(binary)]
    subprocess.run(copy, check=True)
    return binary.read_bytes(), result.stderr


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pie_macros", REPOSITORY / "tools" / "pie_macros.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def operand_text(name: str, value: int) -> str:
    if name in pie_tables.VECTOR_MEMBERS:
        return f"q{value}"
    if name in pie_tables.ADDRESS_MEMBERS:
        return f"a{value}"
    return f"f{value}" if name in pie_tables.FLOAT_MEMBERS else str(value)


def drawn_instruction(opcode: pie_tables.Opcode, generator: random.Random) -> tuple[str, bytes]:
    """Random operands as text, and the instruction by the encoder of tools/pie_tables.py."""
    values: dict[str, int] = {}
    for name in opcode.operands:
        bits = max(low + width for piece, _, width, low in opcode.pieces if piece == name)
        unit, signed = pie_tables.IMMEDIATES.get(name, (1, False))
        low, high = (-1 << (bits - 1), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        values[name] = unit * generator.choice([low, high, generator.randint(low, high)])
    text = f"{opcode.mnemonic} {', '.join(operand_text(name, values[name]) for name in opcode.operands)}"
    return text, pie_tables.encode(opcode, values)


def test_the_macro_file_is_what_its_generator_writes() -> None:
    generator = load_generator()
    assert generator.TARGET.read_text(encoding="utf-8") == generator.text(OPCODES)
    assert len(OPCODES) >= 247


def test_every_pie_instruction_assembles_to_the_bytes_of_the_encoder_and_decodes_back(tmp_path: Path) -> None:
    generator = random.Random(1)
    drawn = [drawn_instruction(opcode, generator) for opcode in OPCODES for _ in range(4)]
    code, messages = assemble("\n".join(text for text, _ in drawn), tmp_path)
    assert messages == ""
    assert code == b"".join(encoded for _, encoded in drawn)
    model = open_model("pages", tmp_path)
    decoded = [model.disassemble(encoded) for _, encoded in drawn]
    assert [OPCODES[opcode].mnemonic for opcode, _, _ in decoded] == [text.split()[0] for text, _ in drawn]
    # and the decoder's text of it assembles to the same bytes
    assert assemble("\n".join(text for _, _, text in decoded), tmp_path) == (code, "")


def test_every_line_of_the_published_encodings_assembles_to_its_bytes(tmp_path: Path) -> None:
    lines = [line.split("\t") for line in shared_file("pie_encodings.tsv").read_text().splitlines() if line[0] != "#"]
    code, messages = assemble("\n".join(text for _, text in lines), tmp_path)
    assert messages == ""
    assert code == b"".join(bytes.fromhex(encoded) for encoded, _ in lines)
    assert len(lines) == 2839
    assert {text.split()[0] for _, text in lines} <= set(BY_NAME)


@pytest.mark.parametrize(
    "instruction",
    [
        "ee.vld.128.ip q0, a2, 8",
        "ee.vld.128.ip q0, a2, 2048",
        "ee.vld.128.ip q0, a2, -2064",
        "ee.vmulas.s8.qacc.ld.ip q0, a2, 512, q1, q2",
        "ee.vsmulas.s8.qacc q0, q1, 16",
        "ee.vldbc.8.ip q0, a2, -1",
        "ee.vld.128.ip q8, a2, 16",
        "ee.vld.128.ip q0, q2, 16",
        "ee.vld.128.ip q0, a2",
        "sext a2, a3, 6",
        "clamps a2, a3, 23",
        "entry a1, 32768",
    ],
)
def test_an_operand_without_an_encoding_is_refused(instruction: str, tmp_path: Path) -> None:
    code, messages = assemble(instruction, tmp_path)
    assert (code, bool(messages)) == (b"", True)


def test_base_instructions_assemble_as_the_isa_manual_says(tmp_path: Path) -> None:
    reference = Assembler(0)
    start = len(reference.image)
    lines = []
    generator = random.Random(2)
    three = ("min", "max", "minu", "maxu", "quou", "quos", "remu", "rems", "muluh", "mulsh")
    for name in three * 4:
        r, s, t = (generator.randrange(16) for _ in range(3))
        reference(name, r, s, t)
        lines.append(f"{name} a{r}, a{s}, a{t}")
    for name in ("sext", "clamps"):
        for bit in range(7, 23):
            reference(name, 4, 11, bit)
            lines.append(f"{name} a4, a11, {bit}")
    for name in ("lbeg", "lend", "lcount", "cpenable"):
        for kind in ("rsr", "wsr"):
            reference(kind, 9, name)
            lines.append(f"{kind}.{name} a9")
    reference("entry", 1, 48)
    reference("retw")
    lines += ["entry a1, 48", "retw"]
    code, messages = assemble("\n".join(lines), tmp_path)
    assert messages == ""
    assert code == bytes(reference.image[start:])


@pytest.mark.parametrize("name", ["loop", "loopnez", "loopgtz"])
@pytest.mark.parametrize("words", [1, 63, 64])
def test_a_loop_ends_at_its_label_and_reaches_256_bytes(name: str, words: int, tmp_path: Path) -> None:
    reference = Assembler(0)
    start = len(reference.image)
    reference(name, 5, "end")
    body = BY_NAME["ee.vmulas.s8.qacc.ld.ip"]
    encoded = pie_tables.encode(body, {"qu": 0, "as": 2, "imm16": 16, "qx": 0, "qy": 3}) * words
    reference.raw(encoded)
    reference.label("end")
    reference("ret")
    reference.elf("end")
    lines = [f"{name} a5, 1f", *["ee.vmulas.s8.qacc.ld.ip q0, a2, 16, q0, q3"] * words, "1: ret"]
    code, messages = assemble("\n".join(lines), tmp_path)
    assert messages == ""
    assert code == bytes(reference.image[start:])


def test_a_loop_that_is_too_long_is_refused(tmp_path: Path) -> None:
    lines = ["loop a5, 1f", *["ee.vmulas.s8.qacc.ld.ip q0, a2, 16, q0, q3"] * 65, "1: ret"]
    code, messages = assemble("\n".join(lines), tmp_path)
    assert (code, bool(messages)) == (b"", True)


@pytest.mark.parametrize("define", ["-D__XTENSA_CALL0_ABI__", "-U__XTENSA_CALL0_ABI__ -D__XTENSA_WINDOWED_ABI__"])
def test_a_function_assembles_for_both_abis_from_one_source(define: str, tmp_path: Path) -> None:
    source, target = tmp_path / "function.S", tmp_path / "function.o"
    source.write_text('#include "assembler.h"\n.text\nkernel_function f\nkernel_enter\nee.zero.qacc\nkernel_return\n')
    command = ["xtensa-lx106-elf-gcc", *define.split(), f"-I{PIE}", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    binary = tmp_path / "function.bin"
    subprocess.run(["xtensa-lx106-elf-objcopy", "-O", "binary", "-j", ".text", target, binary], check=True)
    code = binary.read_bytes()
    windowed = "WINDOWED" in define and "-D__XTENSA_W" in define
    assert (code[:3] == bytes.fromhex("364100")) == windowed  # entry a1, 32
    assert (bytes.fromhex("900000") in code) == windowed  # retw
    assert bytes.fromhex("440825") in code

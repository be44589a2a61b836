# SPDX-License-Identifier: Apache-2.0
"""The PIE model against the golden vectors: every encoding and every semantics case."""

from __future__ import annotations

import ctypes
import gzip
import json
from dataclasses import dataclass
from typing import Any

import pytest
from pie_model_library import (
    MASK32,
    MEMORY,
    OPCODES,
    STATUS_OK,
    VARIANTS,
    Machine,
    Model,
    open_model,
    shared_file,
)


@pytest.fixture(scope="session", params=sorted(VARIANTS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(request.param, tmp_path_factory.getbasetemp())


def test_all_golden_encodings_decode_to_the_text_of_objdump(model: Model) -> None:
    lines = [line.split("\t") for line in shared_file("pie_encodings.tsv").read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 2839
    mnemonics = set()
    for code, text in lines:
        opcode, length, got = model.disassemble(bytes.fromhex(code))
        assert (got, length) == (text, len(code) // 2), code
        assert OPCODES[opcode].mnemonic == text.split()[0]
        mnemonics.add(OPCODES[opcode].mnemonic)
    assert len(mnemonics) == 250


BUFFER = 4096 - 256  #: offset of a case's 512 bytes in the window: across a page
COMPARED = Machine.ar_base.offset  #: every register lies before this member
FLOATS = slice(Machine.fr.offset, Machine.fr.offset + 64)


def registers(state: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes of a Machine up to its ar_base, and its FPU registers, for one state of the vectors."""
    machine = Machine()
    for n in range(8):
        machine.q[n][:] = bytes.fromhex(state[f"q{n}"])
    machine.qacc_l[:], machine.qacc_h[:] = bytes.fromhex(state["qacc_l"]), bytes.fromhex(state["qacc_h"])
    machine.ua_state[:] = bytes.fromhex(state["ua_state"])
    accx = bytes.fromhex(state["accx"])
    machine.accx[:] = accx + (b"\xff" if accx[4] & 0x80 else b"\0") * 3
    machine.sar, machine.sar_byte = state["sar"], state["sar_byte"]
    machine.fft_bit_width = state["fft_bit_width"]
    for n in range(4, 10):
        machine.ar[n] = state[f"a{n}"] & MASK32
    return bytes(machine)[:COMPARED], bytes.fromhex("".join(state["f"])) if "f" in state else bytes(64)


@dataclass
class Case:
    """One line of pie_semantics.jsonl."""

    assembly: str
    code: bytes
    pointers: list[int]  #: registers whose value is an offset from the buffer
    before: tuple[bytes, bytes]
    after: tuple[bytes, bytes]
    memory_before: bytes
    memory_after: bytes

    def differences(self, model: Model) -> list[str]:
        model.memory[:] = self.memory_before
        machine, wanted = self.machine(model, self.before), self.machine(model, self.after)
        status = model.run(machine, self.code)
        found = [] if status == STATUS_OK else [f"status {status}"]
        got, expected = bytes(machine), bytes(wanted)
        if got[:COMPARED] != expected[:COMPARED] or got[FLOATS] != expected[FLOATS]:
            for name in ("qacc_l", "qacc_h", "ua_state", "accx", "ar", "fr"):
                a, b = list(getattr(machine, name)), list(getattr(wanted, name))
                found += [f"{name} {a} not {b}"] if a != b else []
            for n in range(8):
                a, b = list(machine.q[n]), list(wanted.q[n])
                found += [f"q{n} {a} not {b}"] if a != b else []
            for name in ("sar", "sar_byte", "fft_bit_width", "gpio_out"):
                a, b = getattr(machine, name), getattr(wanted, name)
                found += [f"{name} {a} not {b}"] if a != b else []
        return found + (["memory"] if bytes(model.memory) != self.memory_after else [])

    def machine(self, model: Model, state: tuple[bytes, bytes]) -> Machine:
        machine = model.machine()
        ctypes.memmove(ctypes.addressof(machine), state[0], COMPARED)
        ctypes.memmove(ctypes.addressof(machine.fr), state[1], 64)
        for n in self.pointers:
            machine.ar[n] = (machine.ar[n] + model.base + BUFFER) & MASK32
        return machine


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    result = []
    with gzip.open(shared_file("pie_semantics.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            data = json.loads(line)
            before, out = data["in"], data["out"]
            memory = bytearray(b"\x5a" * MEMORY)
            if "mem" in before:
                memory[BUFFER : BUFFER + 512] = bytes.fromhex(before["mem"])
            memory_before = bytes(memory)
            for offset, text in out.get("mem", ()):
                piece = bytes.fromhex(text)
                memory[BUFFER + offset : BUFFER + offset + len(piece)] = piece
            result.append(
                Case(
                    assembly=data["asm"],
                    code=bytes.fromhex(data["bytes"]),
                    pointers=[int(name[1:]) for name in data.get("ptr", ())],
                    before=registers(before),
                    after=registers({**before, **out}),
                    memory_before=memory_before,
                    memory_after=bytes(memory),
                )
            )
    return result


def test_all_golden_semantics_cases_give_the_state_of_silicon(
    model: Model, cases: list[Case], capfd: pytest.CaptureFixture[str]
) -> None:
    failures = [f"{case.assembly}: {'; '.join(found)}" for case in cases if (found := case.differences(model))]
    assert not failures, f"{len(failures)} cases fail, the first: " + "\n".join(failures[:8])
    assert (len(cases), len({case.assembly.split()[0] for case in cases})) == (4654, 247)
    assert "runtime error" not in capfd.readouterr().err

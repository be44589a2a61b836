# SPDX-License-Identifier: Apache-2.0
"""The PIE model against the golden vectors: every encoding and every semantics case."""

from __future__ import annotations

import pytest
from pie_model_library import OPCODES, VARIANTS, Case, Model, open_model, read_cases, shared_file


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    return read_cases()


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


def test_all_golden_semantics_cases_give_the_state_of_silicon(
    model: Model, cases: list[Case], capfd: pytest.CaptureFixture[str]
) -> None:
    failures = [f"{case.assembly}: {'; '.join(found)}" for case in cases if (found := case.differences(model))]
    assert not failures, f"{len(failures)} cases fail, the first: " + "\n".join(failures[:8])
    assert (len(cases), len({case.assembly.split()[0] for case in cases})) == (4654, 247)
    assert "runtime error" not in capfd.readouterr().err

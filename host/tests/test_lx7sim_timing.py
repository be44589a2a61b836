# SPDX-License-Identifier: Apache-2.0
"""The rules of lx7sim's cycle model, each shown by a loop that needs exactly the cycles the rule says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lx7sim_programs import LX7SIM, SCRATCH, Program

from tvhil.lx7sim import CONFIG, REGIONS, REPOSITORY, STALLS, Simulator, Totals

TURNS = 64
FLASH = 0x90000000
Body = Callable[[Program], None]


def pie(p: Program, mnemonic: str, **operands: int) -> None:
    """Emits a vector instruction."""
    p.raw(pie_tables.encode(BY_NAME[mnemonic], operands))


def load_tables() -> object:
    spec = importlib.util.spec_from_file_location("pie_tables", REPOSITORY / "tools" / "pie_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["pie_tables"] = module
    spec.loader.exec_module(module)
    return module


pie_tables = load_tables()
BY_NAME = {opcode.mnemonic: opcode for opcode in pie_tables.read_opcodes()}  # type: ignore[attr-defined]


def nothing(p: Program) -> None:
    """No set-up."""


def totals(folder: Path, body: Body, turns: int, setup: Body, flash: bytes | None = None, **parameters: int) -> Totals:
    p = Program(LX7SIM)
    setup(p)
    end = p.new_label()
    p.li(11, turns)
    p.align_code(1)  # the body starts at a multiple of four
    p("loop", 11, end)
    body(p)
    p.label(end)
    path = folder / f"{turns}.elf"
    path.write_bytes(p.finish())
    image = folder / "flash.bin"
    if flash is not None:
        image.write_bytes(flash)
    named = {name.replace("__", "."): value for name, value in parameters.items()}
    with Simulator(
        pie=True, parameters=named, max_cycles=50_000_000, flash=image if flash is not None else None
    ) as simulator:
        simulator.load(path)
        simulator.run_to_exit()
        rows = simulator.pcs()
        result = simulator.totals()
        assert int(rows["count"].sum() + rows["stall"].sum()) == result.cycles, (
            "every cycle is an instruction or a stall"
        )
        return result


def per_turn(folder: Path, body: Body, setup: Body = nothing, **parameters: int) -> int:
    """Cycles of one turn of a zero-overhead loop around body."""
    once, twice = (totals(folder, body, n * TURNS, setup, **parameters).cycles for n in (1, 2))
    cycles, rest = divmod(twice - once, TURNS)
    assert rest == 0
    return cycles


def instructions(*listing: tuple[object, ...]) -> Body:
    def body(p: Program) -> None:
        for name, *operands in listing:
            p(name, *operands)  # type: ignore[arg-type]

    return body


def pointer(p: Program) -> None:
    p.li(2, p.base + SCRATCH)
    p.li(3, p.base + SCRATCH + 256)


def test_a_zero_overhead_loop_of_n_independent_instructions_takes_n_cycles(tmp_path: Path) -> None:
    for n in (1, 2, 7):
        assert per_turn(tmp_path, instructions(*[("addi", 4, 4, 1)] * n)) == n


def test_a_loaded_register_used_by_the_next_instruction_costs_one_bubble(tmp_path: Path) -> None:
    assert per_turn(tmp_path, instructions(("l32i", 4, 2, 0), ("add", 5, 4, 4)), pointer) == 3
    assert per_turn(tmp_path, instructions(("l32i", 4, 2, 0), ("nop",), ("add", 5, 4, 4)), pointer) == 3
    assert per_turn(tmp_path, instructions(("l32i", 4, 2, 0), ("add", 5, 4, 4)), pointer, latency__load=4) == 5


def test_a_store_of_the_register_just_loaded_waits_unless_its_data_is_read_late(tmp_path: Path) -> None:
    copy = instructions(("l32i", 4, 2, 0), ("s32i", 4, 3, 0))
    assert per_turn(tmp_path, copy, pointer, latency__store_data_late=0) == 3
    assert per_turn(tmp_path, copy, pointer, latency__store_data_late=1) == 2


def test_multiplier_and_divider_results_come_after_their_latency(tmp_path: Path) -> None:
    assert per_turn(tmp_path, instructions(("mull", 4, 2, 3), ("add", 5, 4, 4)), pointer) == 3
    assert per_turn(tmp_path, instructions(("mull", 4, 2, 3), ("nop",), ("add", 5, 4, 4)), pointer) == 3
    assert per_turn(tmp_path, instructions(("quou", 4, 2, 3), ("add", 5, 4, 4)), pointer) == 14
    assert per_turn(tmp_path, instructions(("quou", 4, 2, 3), ("quou", 5, 2, 3)), pointer) == 26, (
        "the divider is not pipelined"
    )


def test_floating_point_results_come_after_their_latency(tmp_path: Path) -> None:
    chain = instructions(("add.s", 1, 2, 3), ("add.s", 4, 1, 1), ("nop",), ("nop",), ("nop",))
    assert per_turn(tmp_path, chain) == 8
    assert per_turn(tmp_path, instructions(("madd.s", 1, 2, 3)), latency__fp_madd=4) == 4, (
        "an accumulator is its own operand"
    )


def zero(p: Program) -> None:
    p("movi", 10, 0)


def branch(name: str, phase: int = 0) -> Body:
    """A branch over nothing, to an address that is phase modulo four."""

    def body(p: Program) -> None:
        target = p.new_label()
        p.align_code(phase + 1)
        p(name, 10, target)
        p.label(target)
        p("nop")

    return body


def test_a_taken_branch_loses_two_cycles_and_one_not_taken_none(tmp_path: Path) -> None:
    padding = 2  # no-operations that bring the branch to its place
    assert per_turn(tmp_path, branch("bnez"), zero) == padding + 2
    assert per_turn(tmp_path, branch("beqz"), zero) == padding + 2 + 2
    assert per_turn(tmp_path, branch("beqz"), zero, transfer__branch_taken=7) == padding + 2 + 7


@pytest.mark.parametrize(("offset", "bubbles"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_a_branch_target_that_crosses_a_fetch_word_costs_a_cycle(tmp_path: Path, offset: int, bubbles: int) -> None:
    padding = {0: 2, 1: 1, 2: 1, 3: 0}[offset]
    assert per_turn(tmp_path, branch("beqz", offset), zero) == padding + 2 + 2 + bubbles


@pytest.mark.parametrize(("phase", "bubbles"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_the_way_back_of_a_loop_longer_than_its_buffer_is_a_transfer_to_its_first_instruction(
    tmp_path: Path, phase: int, bubbles: int
) -> None:
    turns, body = 100, 60  # LOOP reaches 256 bytes; longer loops are made by writing LBEG and LEND

    def run(**parameters: int) -> Totals:
        p = Program(LX7SIM)
        end = p.new_label()
        p.li(11, turns)
        p.align_code(phase + 1)
        p("loop", 11, end)
        for _ in range(body):
            p("addi", 4, 4, 1)
        p.label(end)
        path = tmp_path / "long.elf"
        path.write_bytes(p.finish())
        with Simulator(parameters={name.replace("__", "."): value for name, value in parameters.items()}) as simulator:
            simulator.load(path)
            simulator.run_to_exit()
            return simulator.totals()

    buffered, long = run(), run(loop__buffer_bytes=3 * body - 1)
    assert long.stall["fetch"] - buffered.stall["fetch"] == bubbles * (turns - 1)
    assert long.stall["loop"] - buffered.stall["loop"] == turns - 1
    assert long.cycles - buffered.cycles == (1 + bubbles) * (turns - 1)
    assert run(loop__buffer_bytes=3 * body).cycles == buffered.cycles


def test_call_and_return_lose_two_cycles_each(tmp_path: Path) -> None:
    def function(p: Program) -> None:
        after = p.new_label()
        p("j", after)
        p.align(4)
        p.label("function")
        p("ret")
        p.label(after)

    def body(p: Program) -> None:
        p.align_code(1)  # the return address is a multiple of four
        p("call0", "function")
        p("nop")

    padding = 2
    assert per_turn(tmp_path, body, function) == padding + 3 + 3 + 1


def test_a_load_across_a_sixteen_byte_boundary_takes_two_accesses(tmp_path: Path) -> None:
    def at(offset: int) -> Body:
        def setup(p: Program) -> None:
            p.li(2, p.base + SCRATCH + offset)

        return setup

    body = instructions(("l32i", 4, 2, 0))
    assert [per_turn(tmp_path, body, at(offset)) for offset in (0, 1, 12, 13, 15, 16)] == [1, 1, 1, 2, 2, 1]
    assert per_turn(tmp_path, instructions(("s32i", 4, 2, 0)), at(14)) == 2


def same_block(p: Program) -> None:
    p.li(2, p.base)


def test_a_data_access_to_the_block_that_code_is_fetched_from_waits_when_conflicts_are_on(tmp_path: Path) -> None:
    loads = instructions(*[("l32i", register, 2, 0) for register in (4, 5, 6, 7)])
    fetching = {"loop__buffer_bytes": 0, "loop__back_unbuffered": 0}  # the loop is fetched again in every turn
    big = {"sram__block_bytes": 1 << 18}  # all of the program, not SCRATCH

    assert per_turn(tmp_path, loads, same_block, **fetching, **big) == 4, "off by default"
    assert per_turn(tmp_path, loads, same_block, sram__conflict=1, **fetching, **big) == 4 + 3, "12 bytes are 3 words"
    assert per_turn(tmp_path, loads, same_block, sram__conflict=5, **fetching, **big) == 4 + 15
    assert per_turn(tmp_path, loads, pointer, sram__conflict=1, **fetching, **big) == 4, "another block"
    assert per_turn(tmp_path, loads, same_block, sram__conflict=1, **big) == 4, "the loop buffer fetches nothing"
    result = totals(tmp_path, loads, TURNS, same_block, sram__conflict=1, **fetching, **big)
    assert 3 * TURNS <= result.stall["sram"] <= 3 * TURNS + 16


def test_vector_instructions_of_four_bytes_conflict_in_every_cycle(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        for register in (2, 3, 4, 5):
            pie(p, "ee.vmulas.s8.accx.ld.ip", qu=register, **{"as": 2}, imm16=0, qx=0, qy=1)

    fetching = {"loop__buffer_bytes": 0, "loop__back_unbuffered": 0, "sram__block_bytes": 1 << 18}
    assert per_turn(tmp_path, body, same_block, **fetching) == 4
    assert per_turn(tmp_path, body, same_block, sram__conflict=1, **fetching) == 8
    assert per_turn(tmp_path, body, pointer, sram__conflict=1, **fetching) == 4


# --- PIE ----------------------------------------------------------------------------------------------------------


def test_sixteen_multiply_accumulates_with_fused_loads_and_one_load_take_seventeen_cycles(tmp_path: Path) -> None:
    """The inner loop of esp-dl's 1x1 convolution: q1, q2 filters, q0 inputs, 256 products in 17 issue slots."""

    def setup(p: Program) -> None:
        pointer(p)
        p.li(3, p.base + SCRATCH + 0x8000)

    def accumulate(p: Program, i: int, loaded: int, source: int) -> None:
        pie(p, "ee.vsmulas.s8.qacc.ld.incp", qu=loaded, **{"as": source}, qx=1 + i % 2, qy=0, sel=i)

    def inputs_last(p: Program) -> None:
        for i in range(16):
            accumulate(p, i, 1 + i % 2, 2)
        pie(p, "ee.vld.128.ip", qu=0, **{"as": 3}, imm16=16)

    def inputs_fused(p: Program) -> None:
        for i in range(15):
            accumulate(p, i, 1 + i % 2, 2)
        accumulate(p, 15, 0, 3)
        pie(p, "ee.vld.128.ip", qu=2, **{"as": 2}, imm16=16)

    def next_filter_at_once(p: Program) -> None:
        for i in range(16):
            accumulate(p, i, 2 - i % 2, 2)

    assert per_turn(tmp_path, inputs_last, setup) == 18, "the inputs are used by the next instruction"
    assert per_turn(tmp_path, inputs_fused, setup) == 17
    assert per_turn(tmp_path, next_filter_at_once, setup) == 32, "every filter is used by the next instruction"
    once, twice = (totals(tmp_path, inputs_fused, n * TURNS, setup) for n in (1, 2))
    assert twice.mac - once.mac == 256 * TURNS


def test_a_loaded_vector_used_by_the_next_instruction_costs_one_bubble(tmp_path: Path) -> None:
    def body(gap: int) -> Body:
        def emit(p: Program) -> None:
            pie(p, "ee.vld.128.ip", qu=1, **{"as": 2}, imm16=0)
            for _ in range(gap):
                p("nop")
            pie(p, "ee.vadds.s8", qz=2, qx=1, qy=1)

        return emit

    assert per_turn(tmp_path, body(0), pointer) == 3
    assert per_turn(tmp_path, body(1), pointer) == 3


@pytest.mark.parametrize(
    ("mac", "reduce"),
    [
        (("ee.vsmulas.s8.qacc", {"qx": 0, "qy": 1, "sel": 3}), ("ee.srcmb.s8.qacc", {"qu": 2, "as": 4, "sel": 0})),
        (("ee.vmulas.s8.accx", {"qx": 0, "qy": 1}), ("ee.srs.accx", {"at": 5, "as": 4, "sel": 0})),
        (("ee.vadds.s8", {"qz": 3, "qx": 0, "qy": 1}), ("ee.srcmb.s8.qacc", {"qu": 2, "as": 4, "sel": 0})),
    ],
)
def test_reading_an_accumulator_right_after_a_multiply_class_instruction_costs_one_bubble(
    tmp_path: Path, mac: tuple[str, dict[str, int]], reduce: tuple[str, dict[str, int]]
) -> None:
    def body(gap: int) -> Body:
        def emit(p: Program) -> None:
            pie(p, mac[0], **mac[1])
            for _ in range(gap):
                p("nop")
            pie(p, reduce[0], **reduce[1])
            p("nop")

        return emit

    assert per_turn(tmp_path, body(0)) == 4
    assert per_turn(tmp_path, body(1)) == 4
    assert totals(tmp_path, body(0), TURNS, nothing).stall["pie_unit"] == TURNS


def test_accumulating_back_to_back_needs_no_bubble(tmp_path: Path) -> None:
    def body(p: Program) -> None:
        for _ in range(5):
            pie(p, "ee.vmulas.s8.accx", qx=0, qy=1)

    assert per_turn(tmp_path, body) == 5


# --- caches -------------------------------------------------------------------------------------------------------


def stream(start: int, step: int = 4) -> tuple[Body, Body]:
    """A loop that loads a word at every step; and its set-up."""

    def setup(p: Program) -> None:
        p.li(2, start)

    return instructions(("l32i", 4, 2, 0), ("addi", 2, 2, step)), setup


def fill_cycles(parameters: dict[str, int], memory: str) -> int:
    clocks = parameters[f"{memory}.command_clocks"] + -(
        -parameters["dcache.line"] * 8 // parameters[f"{memory}.bits_per_clock"]
    )
    return parameters["bus.fill_overhead"] + -(-clocks * parameters["clock.cpu_mhz"] // parameters[f"{memory}.mhz"])


@pytest.mark.parametrize(("memory", "start"), [("flash", FLASH), ("psram", 0x68000000)])
def test_streaming_through_the_data_cache_misses_once_a_line_at_the_bus_rate(
    tmp_path: Path, memory: str, start: int
) -> None:
    with Simulator() as simulator:
        parameters = simulator.parameters()
    body, setup = stream(start)
    result = totals(tmp_path, body, 1024, setup, flash=bytes(65536))
    lines = 4096 // parameters["dcache.line"]
    assert result.dcache_miss == lines
    assert result.stall["dcache"] == lines * fill_cycles(parameters, memory)
    assert result.access[memory] == 1024
    assert result.bytes[memory] == 4096


def test_a_second_pass_hits_when_the_data_fits_the_cache_and_misses_when_it_does_not(tmp_path: Path) -> None:
    def two_passes(size: int) -> Totals:
        def setup(p: Program) -> None:
            turn, again = p.new_label(), p.new_label()
            p("movi", 5, 2)
            p.label(again)
            p.li(2, FLASH)
            p.li(3, FLASH + size)
            p.label(turn)
            p("l32i", 4, 2, 0)
            p("addi", 2, 2, 64)
            p("bltu", 2, 3, turn)
            p("addi", 5, 5, -1)
            p("bnez", 5, again)

        return totals(tmp_path, instructions(("nop",)), 1, setup, flash=bytes(1 << 18))

    assert two_passes(65536).dcache_miss == 1024
    assert two_passes(65536 + 64 * 128).dcache_miss > 2048, "least recently used: a little too big misses all the time"


def test_dirty_lines_are_written_back_when_they_are_replaced(tmp_path: Path) -> None:
    def setup(p: Program) -> None:
        p.li(2, 0x68000000)

    result = totals(tmp_path, instructions(("s32i", 4, 2, 0), ("addi", 2, 2, 64)), 2048, setup)
    assert result.dcache_miss == 2048
    assert result.dcache_writeback == 1024


@pytest.mark.parametrize("lines", [0, 1, 2, 4])
def test_autoload_fetches_the_next_lines_while_the_core_works(tmp_path: Path, lines: int) -> None:
    """A load a line and 600 cycles of work, longer than one fill of 456 cycles."""

    def body(p: Program) -> None:
        p("l32i", 4, 2, 0)
        p("addi", 2, 2, 64)
        p("memw")

    def setup(p: Program) -> None:
        p.li(2, FLASH)

    work = {"sync__memw": 600 - 3}
    turns = 60
    result = totals(tmp_path, body, turns, setup, bytes(1 << 16), dcache__autoload_lines=lines, **work)
    assert result.dcache_miss == turns // (lines + 1)
    assert result.stall["dcache"] == 456 * result.dcache_miss, "the others have arrived before they are used"
    always = totals(
        tmp_path, body, turns, setup, bytes(1 << 16), dcache__autoload_lines=lines, dcache__autoload_trigger=2, **work
    )
    assert always.dcache_miss == (1 if lines else turns)


def test_autoload_is_no_faster_than_the_bus_and_a_core_that_comes_early_waits(tmp_path: Path) -> None:
    body, setup = stream(FLASH, 64)
    turns = 64
    plain = totals(tmp_path, body, turns, setup, bytes(1 << 16))
    ahead = totals(tmp_path, body, turns, setup, bytes(1 << 16), dcache__autoload_lines=1, dcache__autoload_trigger=2)
    assert (plain.dcache_miss, ahead.dcache_miss) == (turns, 1)
    assert turns * 456 <= ahead.cycles < plain.cycles
    assert plain.cycles - ahead.cycles == (turns - 1) * 2, "all that a turn of two cycles can hide"
    assert ahead.stall["bus"] == 0


def test_autoload_stays_in_its_memory_and_writes_back_the_lines_it_replaces(tmp_path: Path) -> None:
    def last_line(p: Program) -> None:
        p.li(2, FLASH + (128 << 20) - 64)

    nowhere = totals(tmp_path, instructions(("l32i", 4, 2, 0)), 4, last_line, b"", dcache__autoload_lines=4)
    assert nowhere.dcache_miss == 1

    def psram(p: Program) -> None:
        p.li(2, 0x68000000)

    walk = instructions(("s32i", 4, 2, 0), ("addi", 2, 2, 64))
    result = totals(tmp_path, walk, 2048, psram, dcache__autoload_lines=1)
    assert result.dcache_miss == 1024
    assert result.dcache_writeback == 1024


def nops_in_psram(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration whose code lies in PSRAM, and a program of a thousand nops."""
    text = CONFIG.read_text()
    config = tmp_path / "psram_code.toml"
    config.write_text(re.sub(r"(start = 0x60000000\nsize = 0x08000000\nclass = )\"sram\"", r'\1"psram"', text))
    p = Program(LX7SIM)
    for _ in range(1000):
        p("nop")
    path = tmp_path / "code.elf"
    path.write_bytes(p.finish())
    return config, path


def test_code_is_autoloaded_too(tmp_path: Path) -> None:
    config, path = nops_in_psram(tmp_path)
    found = []
    for lines in (0, 3):
        with Simulator(config=config, parameters={"icache.autoload_lines": lines}) as simulator:
            simulator.load(path)
            simulator.run_to_exit()
            found.append(simulator.totals())
    assert found[0].icache_miss / 5 < found[1].icache_miss < found[0].icache_miss / 3
    assert found[1].cycles < found[0].cycles


def test_code_in_flash_or_psram_is_fetched_through_the_instruction_cache(tmp_path: Path) -> None:
    config, path = nops_in_psram(tmp_path)
    with Simulator(config=config) as simulator:
        line = simulator.parameters()["icache.line"]
        simulator.load(path)
        simulator.run_to_exit()
        result = simulator.totals()
    assert 3000 // line <= result.icache_miss <= 3300 // line + 3
    assert result.stall["icache"] > 50 * result.icache_miss


# --- the parameters -----------------------------------------------------------------------------------------------


def test_every_parameter_has_its_confidence_and_source_in_the_configuration() -> None:
    lines = [
        line
        for line in CONFIG.read_text().splitlines()
        if "=" in line and not line.startswith(("#", "name", "start", "size = 0x", "class"))
    ]
    with Simulator() as simulator:
        assert len(lines) == len(simulator.parameters())
    for line in lines:
        assert re.search(r"# (high|medium|low): .{8,}", line), line


def test_the_rules_table_of_the_readme_names_every_parameter() -> None:
    readme = (CONFIG.parent / "README.md").read_text()
    with Simulator() as simulator:
        missing = [name for name in simulator.parameters() if f"`{name}`" not in readme]
    assert not missing


def test_names_and_order_of_stalls_and_regions_are_those_of_the_header() -> None:
    header = (CONFIG.parent / "lx7sim.h").read_text()
    assert [name.lower() for name in re.findall(r"^    LX7_STALL_(\w+),", header, re.M)] == [
        "dcache_wr" if name == "dcache_write" else name for name in STALLS
    ]
    assert [name.lower() for name in re.findall(r"^    LX7_REGION_(\w+),$", header, re.M)][: len(REGIONS)] == list(
        REGIONS
    )

# SPDX-License-Identifier: Apache-2.0
"""Profiles of hand-made programs: what is counted, where loops are, which cycle an instruction issues in and why."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import drawn_options, small_file
from profiled_programs import COMPILER, build, finished
from test_lx7sim_timing import pie_tables

from tvhil.errors import InputError
from tvhil.lx7sim import PC_ROW, STALLS, Simulator, Stop
from tvhil.packing import read_model
from tvhil.profiling.aggregate import by_function, by_line, cost_of, cycles_by_function
from tvhil.profiling.flame import flame_html, speedscope, trace_events
from tvhil.profiling.loops import decode, find_loops
from tvhil.profiling.macs import operator_macs
from tvhil.profiling.program import Program
from tvhil.profiling.schedule import REASONS, LoopTracer, render
from tvhil.profiling.stacks import Samples, Unwinder, weigh

# 5 rounds of an outer loop, 7 rounds of an inner one each; then 9 rounds without overhead.
NESTED = """
    function main
    movi a2, 5
2:  movi a3, 7
3:  addi a3, a3, -1
    bnez a3, 3b
    addi a2, a2, -1
    bnez a2, 2b
    movi a4, 9
    loop_raw 4, 6
    _addi a5, a5, 1
    _addi a6, a6, 1
    ret
    done main
"""

LOADS = """
    function main
    movi a2, 0x60100000
    movi a3, 1000
4:  l32i a4, a2, 0
    addi a4, a4, 1
    addi a3, a3, -1
    bnez a3, 4b
    ret
    done main
"""

CALLS = """
volatile int sink;
__attribute__((noinline)) static void leaf(int n) { for (int i = 0; i < n; i++) sink += i; }
__attribute__((noinline)) static void twice(int n) { leaf(n); sink++; leaf(n); sink++; }
__attribute__((noinline)) static void thrice(int n) { leaf(n); sink++; leaf(n); sink++; leaf(n); sink++; }
int main(void) { twice(1000); sink++; thrice(1000); sink++; return 0; }
"""


def test_the_functions_of_a_program_add_up_to_its_totals(tmp_path):
    simulator, program = finished(build(tmp_path, NESTED))
    rows, totals = simulator.pcs(), simulator.totals()
    costs = dict(by_function(rows, program))
    # The boot code of the simulator's ROM belongs to no function of the program.
    assert set(costs) == {"_start", "main", "(unknown)"}
    assert sum(cost.instructions for cost in costs.values()) == totals.instructions
    assert sum(cost.cycles for cost in costs.values()) == totals.cycles
    assert costs["main"].instructions == 1 + 5 * (1 + 2 * 7 + 2) + 2 + 2 * 9 + 1
    assert cost_of(rows).stalls == {k: v for k, v in sorted(totals.stall.items(), key=lambda kv: -kv[1]) if v}


def test_a_source_line_has_the_instructions_that_it_was_made_into(tmp_path):
    elf = build(tmp_path, NESTED)
    simulator, program = finished(elf)
    text = (tmp_path / "program.S").read_text().splitlines()
    lines = {line.line: cost for (_, line), cost in by_line(simulator.pcs(), program) if line is not None}
    assert lines[text.index("3:  addi a3, a3, -1") + 1].instructions == 35
    assert lines[text.index("    _addi a6, a6, 1") + 1].instructions == 9
    start = program.function_at(program.symbols["main"])
    assert program.line_at(start.start).text == "movi a2, 5"


def test_loops_are_found_with_their_iterations_entries_and_depth(tmp_path):
    simulator, program = finished(build(tmp_path, NESTED))
    loops = find_loops(simulator.pcs(), program, simulator.disassemble)
    found = {(loop.iterations, loop.entries, loop.depth, loop.innermost, loop.zero_overhead) for loop in loops}
    # The program ends by a store; the jump to itself behind it may have been taken.
    found = {row for row in found if row[0] > 1}
    assert found == {(5, 1, 1, False, False), (35, 5, 2, True, False), (9, 1, 1, True, True)}
    inner = next(loop for loop in loops if loop.depth == 2)
    outer = next(loop for loop in loops if not loop.innermost)
    assert set(inner.pcs) < set(outer.pcs)
    assert outer.cost.cycles + inner.cost.cycles == outer.total.cycles
    taken = simulator.parameters()["transfer.branch_taken"]
    assert inner.total.cycles == 35 * 2 + 30 * taken + inner.total.stalls.get("fetch", 0)
    zero_overhead = next(loop for loop in loops if loop.zero_overhead)
    assert zero_overhead.cycles_per_iteration == 2


def test_multiply_accumulates_of_vector_instructions_are_booked_to_function_line_and_loop(tmp_path):
    encode, opcodes = pie_tables.encode, {opcode.mnemonic: opcode for opcode in pie_tables.read_opcodes()}
    byte = encode(opcodes["ee.vmulas.s8.accx"], {"qx": 0, "qy": 1})
    word = encode(opcodes["ee.vmulas.s16.accx"], {"qx": 0, "qy": 1})
    # Bytes have no line of their own: they belong to that of the instruction before them.
    source = f"""
    function main
    movi a4, 9
    loop_raw 4, {3 + len(byte) + 3 + len(word)}
    _addi a5, a5, 1 // s8
    .byte {", ".join(map(str, byte))}
    _addi a5, a5, 1 // s16
    .byte {", ".join(map(str, word))}
    _addi a5, a5, 1 // once
    .byte {", ".join(map(str, byte))}
    ret
    done main
"""
    simulator, program = finished(build(tmp_path, source), pie=True)
    rows = simulator.pcs()
    assert dict(by_function(rows, program))["main"].pie_macs == 9 * (16 + 8) + 16 == simulator.totals().mac
    lines = {line.text.split("// ")[-1]: cost.pie_macs for (_, line), cost in by_line(rows, program) if line}
    assert (lines["s8"], lines["s16"], lines["once"]) == (9 * 16, 9 * 8, 16)
    (loop,) = [loop for loop in find_loops(rows, program, simulator.disassemble) if loop.zero_overhead]
    assert loop.cost.pie_macs == 9 * 24
    assert loop.cost.as_json()["pie_mac_per_cycle"] == 9 * 24 / loop.cost.cycles == 24 / 4


def test_a_loop_that_is_entered_in_its_middle_is_one_loop(tmp_path):
    source = """
    function main
    movi a2, 6
    j 6f
5:  addi a3, a3, 1
6:  addi a2, a2, -1
    bnez a2, 5b
    ret
    done main
"""
    simulator, program = finished(build(tmp_path, source))
    loops = [loop for loop in find_loops(simulator.pcs(), program, simulator.disassemble) if loop.function == "main"]
    assert [(loop.iterations, loop.entries, len(loop.pcs)) for loop in loops] == [(6, 1, 3)]


def test_two_ways_back_to_a_header_make_one_loop(tmp_path):
    source = """
    function main
    movi a2, 8
7:  addi a2, a2, -1
    bbsi a2, 0, 7b
    addi a3, a3, 1
    bnez a2, 7b
    ret
    done main
"""
    simulator, program = finished(build(tmp_path, source))
    loops = [loop for loop in find_loops(simulator.pcs(), program, simulator.disassemble) if loop.function == "main"]
    assert [(loop.iterations, loop.entries, len(loop.pcs)) for loop in loops] == [(8, 1, 4)]


def traced(elf, parameters=None):
    """The schedule of the hottest loop."""
    simulator, program = finished(elf, parameters=parameters)
    loop = find_loops(simulator.pcs(), program, simulator.disassemble)[0]
    simulator.load(elf)
    tracer = LoopTracer(simulator, loop)
    while not tracer.done and simulator.run(50) == Stop.BUDGET:
        tracer.sample()
    return tracer.schedule, program


@pytest.mark.parametrize("latency", [2, 5])
def test_a_schedule_shows_the_wait_for_a_load_and_for_the_branch(tmp_path, latency):
    schedule, program = traced(build(tmp_path, LOADS), {"latency.load": latency, "transfer.branch_taken": 3})
    slots = schedule.slots
    assert [slot.text.split()[0].removesuffix(".n") for slot in slots] == ["l32i", "addi", "addi", "bnez", "l32i"]
    assert [slot.cycle for slot in slots[:4]] == [0, latency, latency + 1, latency + 2]
    assert slots[1].causes == {"load": latency - 1}
    assert slots[4].causes["branch"] == 3
    assert schedule.steady
    text = "\n".join(render(schedule, program))
    assert f"+{latency - 1} {REASONS['load']}" in text
    assert f"{schedule.cycles} " in text.splitlines()[-1]


def test_the_cycles_of_a_schedule_are_those_of_the_counters(tmp_path):
    schedule, _ = traced(build(tmp_path, LOADS))
    assert schedule.loop.iterations == 1000
    # Only the last iteration does not branch back.
    assert round(schedule.loop.cycles_per_iteration) == schedule.cycles
    for slot in schedule.slots:
        assert sum(slot.causes.values()) == slot.waited
    assert schedule.cycles == schedule.instructions + sum(slot.waited for slot in schedule.slots)


def test_an_interruption_while_a_loop_is_traced_is_not_lost(tmp_path, monkeypatch):
    def interrupt(self, event):
        raise KeyboardInterrupt

    monkeypatch.setattr("tvhil.profiling.schedule._Collector._visit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        traced(build(tmp_path, LOADS))


def test_every_cause_of_a_stall_has_words():
    assert set(REASONS) == set(STALLS)


def sampled(elf, period=97):
    simulator, program = finished(elf)
    cycles = cycles_by_function(simulator.pcs(), program)
    simulator.load(elf)
    samples, unwinder, at = Samples(), Unwinder(simulator, program), 0
    while simulator.run(period) == Stop.BUDGET:
        at += period
        stack, complete = unwinder.stack()
        if complete:
            samples.sequence.append((at, stack))
        else:
            samples.cut += 1
    return samples, cycles


def test_call_stacks_tell_who_called_whom(tmp_path):
    samples, cycles = sampled(build(tmp_path, c=CALLS))
    weights = weigh(samples, cycles)
    twice, thrice = (weights["_start", "main", name, "leaf"] for name in ("twice", "thrice"))
    assert thrice / twice == pytest.approx(1.5, rel=0.05)
    assert twice + thrice == cycles["leaf"]
    assert sum(weights.values()) == sum(cycles.values())
    assert samples.cut < len(samples.sequence) / 100


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=40),
    st.dictionaries(st.sampled_from("xyzw"), st.integers(0, 10**12)),
)
def test_weights_of_stacks_sum_to_the_exact_cycles_of_each_function(stacks, cycles):
    samples = Samples([(i, stack) for i, stack in enumerate(stacks)])
    weights = weigh(samples, cycles)
    for name, expected in cycles.items():
        assert sum(weight for stack, weight in weights.items() if stack[-1] == name) == expected
    assert {stack[-1] for stack in weights} <= set(cycles)


class _Boxes(HTMLParser):
    def __init__(self):
        super().__init__()
        self.boxes, self.outside = [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("class") == "f":
            self.boxes.append(values)
        self.outside += [v for k, v in attrs if k in ("src", "href")]


def test_a_flame_graph_is_one_file_whose_boxes_nest():
    weights = {("main", "<a&b>"): 30, ("main", "c"): 50, ("main",): 20}
    parser = _Boxes()
    parser.feed(flame_html("a <title>", weights))
    assert parser.outside == []
    boxes = {box["data-n"]: (float(box["data-x"]), float(box["data-w"]), int(box["data-d"])) for box in parser.boxes}
    assert boxes == {"all": (0, 1, 0), "main": (0, 1, 1), "c": (0, 0.5, 2), "<a&b>": (0.5, 0.3, 2)}


def test_speedscope_files_hold_every_cycle():
    samples = Samples([(10, ("m", "a")), (20, ("m", "b")), (30, ("m", "b"))])
    weights = {("m", "a"): 11, ("m", "b"): 22}
    document = json.loads(json.dumps(speedscope("t", weights, samples, "tvhil")))
    exact, time = document["profiles"]
    names = [frame["name"] for frame in document["shared"]["frames"]]
    assert (sum(exact["weights"]), exact["endValue"]) == (33, 33)
    assert [[names[i] for i in stack] for stack in exact["samples"]] == [["m", "a"], ["m", "b"]]
    assert (time["weights"], [names[stack[-1]] for stack in time["samples"]]) == ([10, 10], ["a", "b"])


def test_trace_events_close_every_frame_inside_its_caller():
    samples = Samples([(10, ("m", "a", "x")), (20, ("m", "a")), (30, ("m", "b")), (40, ("n",)), (50, ("n",))])
    events = trace_events([("op", 5, 40.0)], samples, 10)["traceEvents"]
    spans = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in events if event["ph"] == "X"}
    assert spans == {"op": (0.5, 4.5), "m": (1, 4), "a": (1, 3), "x": (1, 2), "b": (3, 4), "n": (4, 5)}


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "no ELF file"), (b"\x7fELF" + bytes(100), "no ELF file"), (b"not an ELF file at all", "no ELF file")],
)
def test_what_is_no_program_is_refused(tmp_path, content, text):
    path = tmp_path / "x.elf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        Program(path)


def test_a_missing_program_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        Program(tmp_path / "none.elf")


def test_a_program_for_another_machine_is_refused():
    with pytest.raises(InputError, match="not for Xtensa"):
        Program(Path(sys.executable).resolve())


def test_a_stripped_program_is_refused(tmp_path):
    elf = build(tmp_path, NESTED)
    subprocess.run([COMPILER.replace("gcc", "strip"), str(elf)], check=True)
    with pytest.raises(InputError, match="do not strip"):
        Program(elf)


def test_a_program_without_debug_information_still_has_functions(tmp_path):
    elf = build(tmp_path, NESTED)
    subprocess.run([COMPILER.replace("gcc", "strip"), "--strip-debug", str(elf)], check=True)
    simulator, program = finished(elf)
    assert not program.has_lines
    assert "main" in dict(by_function(simulator.pcs(), program))
    assert program.line_at(program.symbols["main"]) is None


def test_members_of_global_structures_are_found(tmp_path):
    source = "typedef struct { char c; int first; int second; } pair; pair here; int main(void) { return here.second; }"
    program = Program(build(tmp_path, c=source))
    assert program.member_address("here", "second") == program.symbols["here"] + 8
    assert program.member_address("here", "third") is None
    assert program.member_address("there", "second") is None


@pytest.mark.parametrize(
    ("text", "successors"),
    [
        ("add a2, a3, a4", (3,)),
        ("bnez.n a2, 20", (3, 0x20)),
        ("j 40", (0x40,)),
        ("ret.n", ()),
        ("call0 40", (3,)),
        ("loop a3, 9", (3,)),
        ("loopnez a3, 9", (3, 9)),
        ("break 1, 1", (3,)),
    ],
)
def test_an_instruction_goes_where_it_says(text, successors):
    assert decode(0, lambda pc: (text, 3)).successors == successors


def test_no_rows_cost_nothing():
    cost = cost_of(np.zeros(0, PC_ROW))
    assert (cost.cycles, cost.instructions, cost.stalls) == (0, 0, {})


@given(drawn_options())
def test_the_operators_of_a_model_share_its_multiply_accumulates(options):
    model = read_model(small_file(1, **options))
    assert sum(operator_macs(model, op) for op in model.operators) == model.info.macs


def test_the_program_counter_of_a_schedule_is_in_the_disassembly(tmp_path):
    schedule, _ = traced(build(tmp_path, LOADS))
    with Simulator() as simulator:
        simulator.load(tmp_path / "program.elf")
        for slot in schedule.slots:
            text, length = simulator.disassemble(slot.pc)
            assert (text, length > 0) == (slot.text, True)
            assert re.fullmatch(r"[a-z0-9_.]+( .*)?", text)

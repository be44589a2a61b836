# SPDX-License-Identifier: Apache-2.0
"""What a program spent its cycles on, from the counters of lx7sim and the program's ELF file.

`program` reads the ELF file, `record` runs an inference on a simulator in this process, `aggregate` sums counters by
function and source line, `loops` finds the loops, `schedule` writes down one iteration of a loop, `stacks` samples who
called whom, `flame` draws it, `report` puts it all into tables and into JSON. `benchmark` measures kernels and models
on any board and compares measurements.
"""

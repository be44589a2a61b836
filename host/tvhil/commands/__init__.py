# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of `tvhil`.

A command is a module: its docstring is the description, `EXAMPLES` the end of its `--help`, `add_arguments` declares
its options, `run` does it and returns an exit code. It imports what is heavy inside `run`.
"""

# SPDX-License-Identifier: Apache-2.0
"""The `tvhil` command. Each sub-command is a module of `tvhil.commands`, imported only when it is asked for."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import signal
import sys
from collections.abc import Sequence

from tvhil import __version__
from tvhil.errors import ExitCode, TvhilError

# Command, its module in tvhil.commands, one line for the overview.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "say what is installed, what is missing and how to get it"),
    "boards": ("boards", "list the boards that models can run on"),
    "models": ("models", "list the architectures"),
    "train": ("train", "train a model by a recipe: a teacher, or a ternary ViT"),
    "quantize": ("quantize", "make a checkpoint fully ternary and calibrate its activations"),
    "pack": ("pack", "write a checkpoint as a .tvit model file"),
    "plan": ("plan", "fit a .tvit model file into an arena: choose how its layers are cut into pieces"),
    "keygen": ("keygen", "make a key to sign models with"),
    "sign": ("sign", "sign a .tvit model file, or check its signature"),
    "inspect": ("inspect", "show what is in a .tvit model file"),
    "predict": ("predict", "predict latency and memory on a board"),
    "build": ("build", "build the firmware of a board"),
    "flash": ("flash", "put firmware and model on a board"),
    "bench": ("bench", "measure kernels and models on a board, compare with an earlier measurement"),
    "profile": ("profile", "show where the cycles of an inference go, on a board with a cycle model"),
    "run-eval": ("run_eval", "stream a dataset to a board and compare every logit"),
    "evaluate": ("evaluate", "measure how well a model classifies a dataset, in torch, with integers, on a board"),
    "soak": ("soak", "run a few images for hours and watch what changes"),
    "fault-proxy": ("fault_proxy", "put a bad line between a host and a board"),
    "demo": ("demo", "64 handwritten digits on the default emulator"),
}

_EPILOG = """\
a first walk:
  tvhil demo                                           the embedded model on an emulated Xtensa core
  tvhil pack --arch deit_tiny --untrained -o m.tvit    a model file
  tvhil predict m.tvit --board qemu-xtensa             what it will cost
  tvhil run-eval digits --board native                 what it does

exit codes: 0 ok, 2 usage, 3 bad input, 4 something to install, 5 board, 6 mismatch, 130 interrupted; of a board on a
port: 10 none, 11 several, 12 another chip, 13 flash too small, 14 no answer, 15 port in use, 16 no permission, 17 lost
on the way, 18 flash does not hold what was written, 19 firmware of another version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (see `tvhil.errors.ExitCode`)."""
    if argv is None:
        # Being terminated is treated as Ctrl-C: emulators are ended, journals closed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        options = _parser(arguments).parse_args(arguments)
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except TvhilError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone (`tvhil models | head`); say nothing, and let no later flush complain.
        sys.stdout = None
        return ExitCode.OK
    except OSError as error:
        if debug or error.errno not in _OS_ADVICE:
            raise
        place = f" ({error.filename})" if error.filename else ""
        return _fail(f"{_OS_ADVICE[error.errno]}{place}", ExitCode.BAD_INPUT)


_OS_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run the command again, what was written is kept",
    errno.EDQUOT: "the disk quota is used up: free some space and run the command again, what was written is kept",
    errno.EFBIG: "the file may not grow any more (ulimit -f): raise the limit and run again, what was written is kept",
    errno.EACCES: "no permission for this file or device",
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "a file was expected, this is a folder",
    errno.ENOTDIR: "a folder was expected, this is a file",
    errno.EROFS: "the file system is read-only",
}


def _fail(message: str, code: ExitCode) -> int:
    print(f"tvhil: {message}", file=sys.stderr)
    return int(code)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tvhil",
        description="Fully ternary Vision Transformers on microcontrollers: pack, predict, run, compare bit by bit.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tvhil {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        near = difflib.get_close_matches(chosen, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
        parser.error(f"there is no command {chosen!r}; {hint}")
    for name, (module_name, summary) in COMMANDS.items():
        if name != chosen:
            commands.add_parser(name, help=summary, add_help=False)
            continue
        module = importlib.import_module(f"tvhil.commands.{module_name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())

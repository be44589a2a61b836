# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed in Python: the readers of the package, each with files to begin from. The tests offer a fixed set of
mutations; tools/fuzz.py searches for as long as it is told, and measures how much of the parsers that reaches."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from coverage import Coverage
from fuzz_files import FILE_READERS
from fuzz_models import MODEL_READERS
from fuzz_reader import PACKAGE, Reader, beginnings_of, inputs_of
from fuzz_training import TRAINING_READERS
from hypothesis import strategies as st

PARSERS = {
    "packing/reader.py": r".*",
    "packing/trits.py": r"_?decode_\w+|_gaps_headers|gaps_\w*instructions|_layout|tile_bytes|matrix_bytes",
    "packing/signing.py": r"read_\w+|verify|require_signature|_parse|_read",
    "link/framing.py": r".*",
    "link/messages.py": r".*unpack|_text",
    "models/checkpoints.py": r"read_checkpoint|to_timm_keys|_is_torch_file|_read_\w+|_from_\w+|_strip_\w+|_refuse_\w+",
    "models/config.py": r".*__post_init__|ViTConfig\.from_json|_from_mapping|_is_number|_require",
    "models/mapping.py": r"(?!load_activation_scales).*",
    "models/published.py": r"read_hub_config",
    "quantization/config.py": r"QuantizationConfig\.(__post_init__|from_json)",
    "quantization/training/recipe.py": r".*__post_init__|load_recipe|parse_recipe|(?!_Recipe)_\w+",
    "quantization/training/checkpoint.py": r"TrainingState\.load",
    "quantization/training/models.py": r"_read_conv_teacher|check_shapes",
    "datasets/archives.py": r".*",
    "evaluation/journal.py": r"decode_row|read_journal|_scan|_short|_refuse_\w+|Journal\.(rows|resume)",
    "evaluation/training_log.py": r".*",
    "boards/board.py": r"load_board|_\w+",
    "boards/partitions.py": r".*",
    "rack/pool.py": r"read_pool|_\w+",
}

READERS: dict[str, Reader] = {**MODEL_READERS, **TRAINING_READERS, **FILE_READERS}


def beginnings(name: str) -> tuple[bytes, ...]:
    """What is offered to a reader first, and then mutated."""
    return beginnings_of(READERS[name])


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Mutations of what a reader begins from, and now and then bytes from nowhere."""
    return inputs_of(READERS[name])


def line_coverage(data_files: Iterable[Path], modules: Iterable[str]) -> dict[str, tuple[set[int], set[int]]]:
    """Lines of the parsers in some modules that runs under `coverage` executed together, and those that they missed."""
    counts = Coverage(data_file=None, config_file=False)
    counts.combine([str(file) for file in data_files if file.exists()], keep=True)
    found = {}
    for module in modules:
        path = PACKAGE / module
        with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
            counts.json_report([str(path)], outfile=report.name)
            (file,) = json.load(report)["files"].values()
        executed, missing = set[int](), set[int]()
        for name, region in file["functions"].items():
            if name and re.fullmatch(PARSERS[module], name.partition("@")[0]):
                executed |= set(region["executed_lines"])
                missing |= set(region["missing_lines"])
        found[module] = executed, missing
    return found

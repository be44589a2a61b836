# SPDX-License-Identifier: Apache-2.0
"""Figures of a test run as OpenMetrics text, for Prometheus and whatever else reads it.

Source: the OpenMetrics specification 1.0, "Text Format": the name of a metric ends with its unit, all samples of a
metric stand together, the text ends with `# EOF`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping


class OpenMetrics:
    """Gauges, each with its labels.

    >>> metrics = OpenMetrics()
    >>> metrics.add("tvhil_run", "cycles", "one inference", 1200, {"board": "esp32s3"})
    >>> print(metrics.text(), end="")
    # TYPE tvhil_run_cycles gauge
    # UNIT tvhil_run_cycles cycles
    # HELP tvhil_run_cycles one inference
    tvhil_run_cycles{board="esp32s3"} 1200
    # EOF
    """

    def __init__(self) -> None:
        self._families: dict[tuple[str, str, str], dict[str, float]] = {}

    def add(self, name: str, unit: str, help_text: str, value: float, labels: Mapping[str, str]) -> None:
        """One figure; a later one of the same name and labels replaces it."""
        full = f"{name}_{unit}"
        if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", full):
            raise ValueError(f"{full!r} is no name of a metric")
        told = ",".join(f'{key}="{_escaped(text)}"' for key, text in sorted(labels.items()))
        self._families.setdefault((full, unit, help_text), {})[told] = value

    def text(self) -> str:
        """All of them."""
        lines = []
        for (name, unit, help_text), samples in self._families.items():
            lines += [f"# TYPE {name} gauge", f"# UNIT {name} {unit}", f"# HELP {name} {_escaped(help_text)}"]
            lines += [f"{name}{{{labels}}} {value:.12g}" for labels, value in samples.items()]
        return "\n".join([*lines, "# EOF", ""])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

# SPDX-License-Identifier: Apache-2.0
"""The text that figures are written as."""

import doctest

import pytest

import open_metrics
from open_metrics import OpenMetrics


def test_the_example_in_the_documentation_is_what_comes_out():
    assert doctest.testmod(open_metrics) == doctest.TestResults(failed=0, attempted=3)


def test_samples_of_a_metric_stand_together_and_labels_are_escaped():
    metrics = OpenMetrics()
    metrics.add("a", "bytes", "one", 1, {"model": 'say "hi"\\'})
    metrics.add("b", "ratio", "two", 0.5, {})
    metrics.add("a", "bytes", "one", 2, {"model": "other"})
    metrics.add("a", "bytes", "one", 3, {"model": "other"})
    assert metrics.text().splitlines() == [
        "# TYPE a_bytes gauge", "# UNIT a_bytes bytes", "# HELP a_bytes one",
        r'a_bytes{model="say \"hi\"\\"} 1', 'a_bytes{model="other"} 3',
        "# TYPE b_ratio gauge", "# UNIT b_ratio ratio", "# HELP b_ratio two", "b_ratio{} 0.5",
        "# EOF",
    ]  # fmt: skip


def test_a_name_that_no_reader_takes_is_refused():
    with pytest.raises(ValueError, match="no name"):
        OpenMetrics().add("a-b", "bytes", "", 1, {})

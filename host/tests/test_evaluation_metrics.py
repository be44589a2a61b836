# SPDX-License-Identifier: Apache-2.0
"""Figures of a classifier: equal to scikit-learn's on any answers, calibration against its definition."""

import numpy as np
import pytest
import sklearn.metrics as theirs
from hypothesis import given, settings
from hypothesis import strategies as st

from tvhil.evaluation.metrics import agreement, calibration, class_figures, confusion_matrix, softmax


@st.composite
def answers(draw):
    classes = draw(st.integers(1, 7))
    pairs = draw(st.lists(st.tuples(*[st.integers(0, classes - 1)] * 2), min_size=1, max_size=60))
    labels, predicted = (np.array(values) for values in zip(*pairs, strict=True))
    return classes, labels, predicted


@settings(max_examples=100, deadline=None)
@given(answers())
def test_precision_recall_f1_and_confusion_are_those_of_scikit_learn(case):
    classes, labels, predicted = case
    confusion = confusion_matrix(labels, predicted, classes)
    assert np.array_equal(confusion, theirs.confusion_matrix(labels, predicted, labels=range(classes)))
    figures = class_figures(confusion)
    each = theirs.precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    for name, expected in zip(("precision", "recall", "f1", "support"), each, strict=True):
        np.testing.assert_allclose(getattr(figures, name), expected, rtol=1e-12, atol=0)
    macro = theirs.precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert [figures.macro()[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_the_calibration_error_is_the_weighted_gap_of_confidence_and_accuracy(cases, bins):
    confidence = np.array([c for c, _ in cases])
    right = np.array([r for _, r in cases])
    expected = 0.0
    for low in range(bins):
        inside = [(c, r) for c, r in cases if max(0, int(np.ceil(c * bins)) - 1) == low]
        if inside:
            gap = abs(np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside]))
            expected += len(inside) / len(cases) * gap
    result = calibration(confidence, right, bins)
    assert result.error == pytest.approx(expected, abs=1e-12)
    assert result.images.sum() == len(cases)
    assert 0 <= result.error <= 1


def test_a_classifier_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    confidence = np.repeat([0.25, 0.75], 100)
    right = np.concatenate([np.arange(100) < 25, np.arange(100) < 75])
    assert calibration(confidence, right).error == pytest.approx(0, abs=1e-12)
    assert calibration(np.full(10, 1.0), np.zeros(10, bool)).error == 1.0


def test_probabilities_sum_to_one_whatever_the_size_of_the_logits():
    p = softmax(np.array([[1000.0, 0, -1000], [0, 0, 0]]))
    np.testing.assert_allclose(p, [[1, 0, 0], [1 / 3] * 3], atol=1e-12)


def test_agreement_is_symmetric_and_counts_the_images_that_both_answered():
    a, b = np.array([1, 2, 3, 4]), np.array([1, 2, 0])
    assert agreement([a, b]).tolist() == [[1.0, 2 / 3], [2 / 3, 1.0]]

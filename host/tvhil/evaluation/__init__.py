# SPDX-License-Identifier: Apache-2.0
"""Run a model on a board, compare with the prediction bit by bit, keep a journal, report."""

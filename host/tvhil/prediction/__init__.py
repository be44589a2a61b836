# SPDX-License-Identifier: Apache-2.0
"""What a board will answer: logits to the bit, bytes of memory, cycles or instructions."""

from tvhil.prediction.predictor import OperatorOutput, Predictor

__all__ = ["OperatorOutput", "Predictor"]

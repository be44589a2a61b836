# SPDX-License-Identifier: Apache-2.0
"""Fully ternary Vision Transformers on microcontrollers, and the harness that proves their numbers."""

__version__ = "0.1.0"

# SPDX-License-Identifier: Apache-2.0
"""The `.tvit` model file: trit codecs, writer, reader (device/FORMAT.md)."""

from tvhil.packing.format import ModelError, Status
from tvhil.packing.reader import TvitModel, read_model
from tvhil.packing.writer import pack_vit

__all__ = ["ModelError", "Status", "TvitModel", "pack_vit", "read_model"]

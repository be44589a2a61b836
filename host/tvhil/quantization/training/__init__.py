# SPDX-License-Identifier: Apache-2.0
"""Training by recipe: `tvhil train`. `recipe` needs no torch, the other modules do."""

"""Micro-rotated GPTQ (arXiv 2509.23202): GPTQ behind a block Hadamard rotation of the operand.

The rotation spreads what outliers a block has over all its values, which a format with so few bits and one
scale for 32 values needs. Rows and statistics arrive rotated, so what is left to do is GPTQ.
"""

from __future__ import annotations

from mxort.quantize import gptq

ROTATION = 32
"""The block of the rotation where the recipe has none: that of the scales."""

quantize = gptq.quantize

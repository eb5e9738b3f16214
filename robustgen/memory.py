"""Telling exhausted memory from other failures: torch has one exception for devices and none for the CPU."""

from __future__ import annotations

import torch

__all__ = ["is_memory_error"]


def is_memory_error(error: RuntimeError) -> bool:
    """Whether a smaller batch could help."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "not enough memory" in text

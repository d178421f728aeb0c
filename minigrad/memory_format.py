"""Memory formats: in which order the elements of a tensor lie in memory."""

from __future__ import annotations

from enum import Enum

__all__ = ["MemoryFormat", "channels_last", "contiguous_format", "preserve_format"]


class MemoryFormat(Enum):
    """C order, or that of images (N, C, H, W) whose channels come last: the strides of (N, H, W, C).

    ``preserve_format`` asks for none: what is computed for each element lies as its input does.
    """

    contiguous_format = "contiguous_format"
    channels_last = "channels_last"
    preserve_format = "preserve_format"

    def __repr__(self) -> str:
        return f"minigrad.{self.value}"


contiguous_format = MemoryFormat.contiguous_format
channels_last = MemoryFormat.channels_last
preserve_format = MemoryFormat.preserve_format

"""The precision of float32 matrix products and convolutions: TF32 and Winograd, on or off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = [
    "convolution_precision",
    "get_convolution_precision",
    "get_float32_matmul_precision",
    "set_convolution_precision",
    "set_float32_matmul_precision",
]

# ---- products of matrices ---------------------------------------------------------------------------------

_PRECISIONS = ("highest", "high", "medium")
_precision = "highest"


def get_float32_matmul_precision() -> str:
    """How exact the products of float32 matrices are; ``"highest"`` unless set otherwise."""
    return _precision


def set_float32_matmul_precision(precision: str) -> None:
    """Set how exact the products of float32 matrices are, and of convolutions as such products.

    Args:
        precision: ``"highest"``: true float32. ``"high"`` and ``"medium"``: where a device has tensor
            cores, factors are rounded to TF32 (10 bits of mantissa: an error of up to 2^-10 of each product)
            and sums are float32. So are those of convolutions with 16 channels and more, of a group;
            PyTorch sets these apart, by ``torch.backends.cudnn.allow_tf32``.

    Raises:
        ValueError: ``precision`` is none of these.
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ValueError(
            f"set_float32_matmul_precision: expected one of {', '.join(_PRECISIONS)}, got {precision!r}"
        )
    _precision = precision


# ---- convolutions -----------------------------------------------------------------------------------------

_CONVOLUTION_PRECISIONS = ("highest", "high")
_convolution_precision = "high"


def get_convolution_precision() -> str:
    """How exact the convolutions of float32 arrays are; ``"high"`` unless set otherwise."""
    return _convolution_precision


def set_convolution_precision(precision: str) -> None:
    """Set how exact the convolutions of float32 arrays are. Those of float64 are always exact.

    Args:
        precision: ``"highest"``: sums of products in float32, as the definition has them. ``"high"``: where
            it is faster, 3x3 convolutions with stride 1, and their gradients, are computed by Winograd's
            algorithm (https://arxiv.org/abs/1509.09308), mostly on tiles of 4x4 pixels; on the CPU 5x5 ones
            too, on tiles of 2x2. It multiplies up to 4 times less, and amplifies rounding errors: with
            16 channels and more they are 3 to 5 times those of the definition's sums in the root mean square,
            and up to 8 times in the last pixel of a tile (some 1e-6 of the outputs' standard deviation, at
            128 channels). They are relative to the largest values in a tile's window, of 6x6 pixels; in the
            same way, NaN or infinity reaches the whole tile.

    Raises:
        ValueError: ``precision`` is neither.
    """
    global _convolution_precision
    if precision not in _CONVOLUTION_PRECISIONS:
        raise ValueError(
            f"set_convolution_precision: expected one of {', '.join(_CONVOLUTION_PRECISIONS)}, "
            f"got {precision!r}"
        )
    _convolution_precision = precision


@contextlib.contextmanager
def convolution_precision(precision: str) -> Iterator[None]:
    """Inside this context, :func:`set_convolution_precision` is ``precision``, for the whole process."""
    before = _convolution_precision
    set_convolution_precision(precision)
    try:
        yield
    finally:
        set_convolution_precision(before)

"""How exact the products of float32 matrices are."""

from __future__ import annotations

__all__ = ["get_float32_matmul_precision", "set_float32_matmul_precision"]

_PRECISIONS = ("highest", "high", "medium")
_precision = "highest"


def get_float32_matmul_precision() -> str:
    """How exact the products of float32 matrices are; ``"highest"`` unless set otherwise."""
    return _precision


def set_float32_matmul_precision(precision: str) -> None:
    """Set how exact the products of float32 matrices are.

    Args:
        precision: ``"highest"``: true float32. ``"high"`` and ``"medium"``: where a device has tensor
            cores, factors are rounded to TF32 (10 bits of mantissa: an error of up to 2^-10 of each product)
            and sums are float32.

    Raises:
        ValueError: ``precision`` is none of these.
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ValueError(
            f"set_float32_matmul_precision: expected one of {', '.join(_PRECISIONS)}, got {precision!r}"
        )
    _precision = precision

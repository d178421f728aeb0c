"""Numbers as text for people: a few digits, and a unit that fits, in plain ASCII."""

from __future__ import annotations

__all__ = ["count", "megabytes", "per_second", "quantity", "seconds", "share", "significant", "times"]


def significant(value: float) -> str:
    """Three significant digits, and all of a large number: 0.0123, 4.56, 78.9, 12345."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A time with its unit: 1.23 s, 45.6 ms, 7.89 us."""
    if value is None:
        return ""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{significant(value / 1e-9)} ns"


def share(value: float | None) -> str:
    """A share as a percentage of two digits or so: 92 %, 3.4 %, 0.02 %."""
    if value is None:
        return ""
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def times(value: float | None) -> str:
    """A factor: x1.9, x86."""
    return "" if value is None else f"x{value:.0f}" if value >= 9.95 else f"x{value:.2g}"


def per_second(rate: float, unit: str) -> str:
    """A rate with a prefix: 117 GFLOP/s, 4.3 TB/s."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if rate >= size:
            return f"{significant(rate / size)} {prefix}{unit}"
    return f"{significant(rate / 1e3)} k{unit}"


def count(number: int | None, noun: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def megabytes(number: int) -> str:
    """Bytes as ``51.4 MB``."""
    return f"{significant(number / 1e6)} MB"


def quantity(value: float | str, unit: str) -> str:
    """A value with its unit, as the facts of a machine have them: ``32 kB``, ``117 GFLOP/s``, ``5 us``."""
    if isinstance(value, str):
        return value
    if unit in ("B/s", "FLOP/s"):
        return per_second(value, unit)
    if unit == "s":
        return seconds(value)
    if unit == "B":
        for size, prefix in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value >= size:
                return f"{significant(value / size)} {prefix}"
    return f"{significant(value)} {unit}".rstrip()

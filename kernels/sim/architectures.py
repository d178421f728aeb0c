"""What the cards that the simulator stands in for allow to a block.

Source: the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide.
"""

from __future__ import annotations

SHARED_BYTES = {
    "sm_70": 96 * 1024,
    "sm_75": 64 * 1024,
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_87": 163 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_90a": 227 * 1024,  # with what of compute capability 9.0 later cards have not
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}
"""The most shared memory, static and dynamic, that a block can have."""

"""The CPU kernels: Cython, compiled once for each instruction-set level; the best level is loaded here.

``isa`` is the level in use: ``"x86_64_v2"`` (SSE4.2), ``"x86_64_v3"`` (AVX2 and FMA), ``"x86_64_v4"``
(AVX-512), or ``"baseline"`` on other processors. The environment variable ``MINIGRAD_ISA`` overrides the
choice. The kernel modules (``matmul``, ``conv2d``, ...) are attributes of this package.
"""

import importlib
import os
from pathlib import Path

from . import cpuid

LEVELS = ("baseline", "x86_64_v2", "x86_64_v3", "x86_64_v4")
MODULES = ("matmul", "conv2d", "pool2d", "elementwise", "softmax", "optim")

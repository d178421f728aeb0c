"""docs/custom-kernels.md: its Python blocks run, one after the other."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad.kernels import sim

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/custom-kernels.md"


@pytest.mark.skipif(not sim.is_available(), reason="the simulator needs a C++ compiler: install g++")
@pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="Cython is not installed")
def test_the_page_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr

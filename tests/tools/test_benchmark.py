import re
import runpy
import sys
from pathlib import Path

import pytest

from mask2former_ops import backend

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"


@pytest.mark.skipif(backend("cpu").name != "compiled", reason="there is no compiled op")
def test_op(monkeypatch, capsys):
    arguments = ["op", "--size", "64", "96", "--repeats", "1", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    runpy.run_path(str(TOOL), run_name="__main__")
    output = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if "|" not in line}
    assert float(rows["compiled"][2]) < 0.02
    assert re.fullmatch(r"\d+\.\d\d", rows["ratio"][0])

"""Which backend is in use, and why: each case in a process of its own, on a copy of the package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mask2former_ops
from mask2former_ops.library import _SUFFIX, NEWEST

PACKAGE = Path(mask2former_ops.__file__).parent
LIBRARY = f"ms_deform_attn_cpu{_SUFFIX}"

REPORT = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mask2former_ops
    at_import = len(caught)
    inputs = torch.load(sys.argv[2])
    for _ in range(3):
        output = mask2former_ops.ms_deform_attn(*inputs)
    if "compile" in sys.argv:
        compiled = torch.compile(
            mask2former_ops.ms_deform_attn, backend="aot_eager", fullgraph=True
        )
        output = compiled(*inputs)
ours = [str(w.message) for w in caught if "mask2former_ops" in str(w.message)]
name, library, reason = mask2former_ops.backend("cpu")
print(json.dumps({
    "file": mask2former_ops.__file__, "name": name, "library": library and str(library),
    "reason": reason, "warnings": ours, "at_import": at_import, "output": output.tolist(),
    "imported": sorted({module.split(".")[0] for module in sys.modules}),
}))
"""


@pytest.fixture
def inputs():
    value = torch.randn(1, 6 * 5 + 2 * 3, 2, 4)
    locations = torch.rand(1, 3, 2, 2, 2, 2)
    return value, [(6, 5), (2, 3)], locations, torch.rand(1, 3, 2, 2, 2)


@pytest.fixture
def copy(tmp_path):
    """A copy of the Python files alone, as an installation without a compiler leaves them."""
    folder = tmp_path / "site" / "mask2former_ops"
    folder.mkdir(parents=True)
    for path in PACKAGE.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def report(folder: Path, inputs: tuple, *arguments: str) -> dict:
    torch.save(inputs, folder.parent / "inputs.pt")
    command = [sys.executable, "-c", REPORT, folder.parent, folder.parent / "inputs.pt", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert Path(found["file"]).parent == folder
    return found


def test_compiled_library_is_used_without_a_word(copy, inputs):
    library = PACKAGE / LIBRARY
    if not library.exists():
        pytest.skip(
            "the operator is not built here; test_ms_deform_attn.py says whether it must be"
        )
    shutil.copy(library, copy)
    found = report(copy, inputs)
    assert (found["name"], found["library"]) == ("compiled", str(copy / LIBRARY))
    assert found["warnings"] == []
    expected = mask2former_ops.ms_deform_attn_reference(*inputs)
    torch.testing.assert_close(torch.tensor(found["output"]), expected)
    assert not {"mask2former", "detectron2"} & set(found["imported"])


@pytest.mark.parametrize(
    ("record", "why", "arguments"),
    [
        (None, "it was never built", ("compile",)),
        ("its build failed: no g++ on PATH\n", "its build failed: no g++ on PATH", ()),
    ],
)
def test_not_built_warns_once_and_computes_the_same(copy, inputs, record, why, arguments):
    if record:
        (copy / "build_failure_cpu.txt").write_text(record)
    found = report(copy, inputs, *arguments)
    assert (found["name"], found["library"]) == ("pytorch", None)
    assert found["reason"] == f"{LIBRARY} is missing: {why}"
    assert found["at_import"] == 0  # worker processes import the package too
    assert len(found["warnings"]) == 1
    assert found["reason"] in found["warnings"][0]
    assert "install a C++17 compiler" in found["warnings"][0]
    expected = mask2former_ops.ms_deform_attn_reference(*inputs)
    assert torch.equal(torch.tensor(found["output"]), expected)


def test_broken_library_tells_the_loader_s_message(copy, inputs):
    (copy / LIBRARY).write_bytes(b"not a library")
    found = report(copy, inputs)
    assert found["name"] == "pytorch"
    assert found["reason"].startswith(f"{LIBRARY} does not load: ")
    assert str(copy / LIBRARY) in found["reason"]  # from dlopen: "<path>: file too short"
    assert len(found["warnings"]) == 1
    expected = mask2former_ops.ms_deform_attn_reference(*inputs)
    assert torch.equal(torch.tensor(found["output"]), expected)


def test_library_from_before_the_newest_operator(copy, inputs):
    if not (PACKAGE / LIBRARY).exists():
        pytest.skip("the operator is not built here")
    shutil.copy(PACKAGE / LIBRARY, copy)
    source = (copy / "library.py").read_text()
    newer = source.replace(f'NEWEST = "{NEWEST}"', 'NEWEST = "one_that_is_to_come"')
    assert newer != source
    (copy / "library.py").write_text(newer)
    found = report(copy, inputs)
    assert (found["name"], found["library"]) == ("pytorch", None)
    assert found["reason"] == f"{LIBRARY} is older than the sources"
    assert len(found["warnings"]) == 1 and "reinstall" in found["warnings"][0]
    expected = mask2former_ops.ms_deform_attn_reference(*inputs)
    assert torch.equal(torch.tensor(found["output"]), expected)


def test_devices_without_a_library_use_pytorch():
    status = mask2former_ops.backend("mps")
    assert status.name == "pytorch" and status.library is None and "'mps'" in status.reason

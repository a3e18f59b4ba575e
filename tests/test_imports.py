"""The import rules of CONTRIBUTING.md, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# (files, what they must not import); a folder or module stands for all below it.
FORBIDDEN = [
    ("ops", ["mask2former", "detectron2"]),
    ("mask2former", ["tools", "datasets", "tests"]),
    (
        "mask2former/modeling",
        [f"mask2former.{m}" for m in ("data", "evaluation", "solver", "inference", "trainer")],
    ),
    ("mask2former/data", ["mask2former.modeling"]),
    ("mask2former/modeling/pixel_decoder.py", ["mask2former.modeling.transformer_decoder"]),
    ("mask2former/modeling/transformer_decoder.py", ["mask2former.modeling.pixel_decoder"]),
    *[
        (
            f"mask2former/modeling/{name}.py",
            [f"mask2former.modeling.{m}" for m in ("meta_arch", "mask_former_head")]
            + [f"mask2former.modeling.{m}" for m in ("pixel_decoder", "transformer_decoder")],
        )
        for name in ("criterion", "matcher", "postprocessing")
    ],
    ("mask2former/modeling/postprocessing.py", ["torch.nn", "detectron2.config"]),
]


def imports(path: Path) -> set[str]:
    """Absolute names of all modules (and of the names taken from them) that a file imports."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("where, forbidden", FORBIDDEN, ids=[where for where, _ in FORBIDDEN])
def test_forbidden_imports(where, forbidden):
    path = ROOT / where
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for name in imports(file):
            for prefix in forbidden:
                assert name != prefix and not name.startswith(prefix + "."), f"{file}: {name}"


def test_cfg_stays_in_from_config_and_the_builders():
    for file in (ROOT / "mask2former" / "modeling").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any(a.arg == "cfg" for a in node.args.args):
                allowed = node.name == "from_config" or node.name.startswith("build_")
                assert allowed or node.name == "thing_ids_of", f"{file}: {node.name} takes cfg"


def test_the_rules_see_relative_imports():
    """The checks above would pass on nothing if this did."""
    assert "mask2former.modeling.matcher" in imports(
        ROOT / "mask2former" / "modeling" / "criterion.py"
    )
    assert "mask2former.errors" in imports(ROOT / "mask2former" / "data" / "catalog.py")

"""tools/analyze_model.py: counts against closed forms, real runs and the paper."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from mask2former import load_config
from mask2former.analysis import analyze, build_network, count, padded_size
from mask2former_ops import backend, ms_deform_attn

ROOT = Path(__file__).resolve().parents[2]
R50 = ROOT / "configs" / "coco" / "panoptic-segmentation" / "maskformer2_R50_bs16_50ep.yaml"


def whole(forward):
    counts = count(forward)
    return counts.flops.get("Global", 0), counts.activations.get("Global", 0)


def test_linear_and_matmul():
    x, weight, bias = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(3)
    assert whole(lambda: F.linear(x, weight, bias)) == (2 * 5 * 8 * 3, 2 * 5 * 3)
    features = torch.randn(2, 8, 4, 6)
    masks = whole(lambda: torch.einsum("bqc,bchw->bqhw", x, features))
    assert masks == (2 * 5 * 8 * 24, 2 * 5 * 24)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups):
    x, weight = torch.randn(2, 4, 9, 7), torch.randn(6, 4 // groups, 3, 3)
    pixels = 2 * 5 * 4  # of both pictures, at stride 2
    flops, activations = whole(lambda: F.conv2d(x, weight, stride=2, padding=1, groups=groups))
    assert (flops, activations) == (pixels * 6 * (4 // groups) * 9, pixels * 6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)  # (B, M, Q or S, d)
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool) if masked else None
    scores = 2 * 3 * 5 * 7
    expected = 2 * scores * 8, scores + query.numel()
    attend = F.scaled_dot_product_attention
    assert whole(lambda: attend(query, key, key, attn_mask=mask)) == expected
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert whole(lambda: attend(query, key, key, attn_mask=mask)) == expected


def use(monkeypatch, name):
    """Make ``ms_deform_attn`` run by the implementation ``name``."""
    if name == "compiled" and backend("cpu").name != "compiled":
        pytest.skip("there is no compiled op")
    module = sys.modules["mask2former_ops.ms_deform_attn"]
    monkeypatch.setattr(module, "use_compiled", lambda device: name == "compiled")


@pytest.mark.parametrize("name", ["compiled", "pytorch"])
def test_deformable_attention(monkeypatch, name):
    """Four pixels around each sample point, and its attention weight, for D channels."""
    use(monkeypatch, name)
    value, shapes = torch.randn(2, 24 + 6, 4, 8), [(4, 6), (2, 3)]  # D = 8
    weights = torch.rand(2, 5, 4, 2, 3)
    locations = torch.rand(2, 5, 4, 2, 3, 2)
    counts = whole(lambda: ms_deform_attn(value, shapes, locations, weights))
    assert counts == (2 * 5 * 4 * 2 * 3 * 8 * 5, 0)


def test_compiled_and_fallback_cost_the_same(monkeypatch, tiny_cfg):
    analyses = []
    for name in ("pytorch", "compiled"):
        use(monkeypatch, name)
        analyses.append(analyze(build_network(tiny_cfg), (1, 3, 64, 96)))
    assert analyses[0].modules == analyses[1].modules
    assert analyses[0].modules["sem_seg_head.pixel_decoder.transformer"].flops > 0


def test_peak_memory():
    x = torch.randn(256)  # 1024 bytes, from before

    def forward():
        a = x + 1
        b = (a * 2).view(16, 16)  # a and b
        del a
        b.relu_()
        c = b + 1  # b and c
        return torch.cat([b, c])  # b, c, and as much again

    assert count(forward).peak_bytes == 4 * 1024


def check_that_modules_add_up(modules):
    head = "sem_seg_head"
    for i in range(3):
        assert modules[""][i] == modules["backbone"][i] + modules[head][i] > 0
        parts = modules[f"{head}.pixel_decoder"][i] + modules[f"{head}.predictor"][i]
        assert modules[head][i] == parts
    # A list is never called; its layers are.
    layers = f"{head}.pixel_decoder.transformer.encoder.layers"
    assert modules[layers].flops == modules[f"{layers}.0"].flops > 0


def test_shapes_alone_tell_what_a_real_run_does(tiny_cfg):
    """Fake tensors against a run of the model that computes something."""
    analysis = analyze(build_network(tiny_cfg), (2, 3, 64, 96))
    model = build_model(tiny_cfg).eval().requires_grad_(False)
    pictures = torch.randn(2, 3, 64, 96)
    counts = count(lambda: model.sem_seg_head(model.backbone(pictures)))
    assert analysis.modules[""].parameters == sum(p.numel() for p in model.parameters())
    assert analysis.modules[""].flops == counts.flops["Global"]
    assert analysis.modules[""].activations == counts.activations["Global"]
    assert analysis.peak_bytes == counts.peak_bytes
    check_that_modules_add_up(analysis.modules)


def test_the_papers_model():
    """44 M parameters and 226 G on COCO, whose pictures have 800 x 1120 pixels on the average.

    The published decoder forms all masks of every layer at stride 4; ours those of the last only,
    and the other nine at the strides of the three memories.
    """
    cfg = load_config(R50)
    cost = analyze(build_network(cfg), (1, 3, 800, 1120)).modules[""]
    assert cost.parameters / 1e6 == pytest.approx(43.98, abs=0.01)
    pixels = [800 * 1120 // stride**2 for stride in (4, 8, 16, 32)]
    published_masks = 100 * 256 * (9 * pixels[0] - 3 * sum(pixels[1:]))
    assert (cost.flops + published_masks) / 1e9 == pytest.approx(226, rel=0.02)


def test_padding(tiny_cfg):
    network = build_network(tiny_cfg)
    assert padded_size(32, network, (800, 1201)) == (800, 1216)
    assert padded_size(0, network, (7, 5)) == (7, 5)


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["analyze_model.py", *map(str, arguments)])
        tool = str(ROOT / "tools" / "analyze_model.py")
        try:
            runpy.run_path(tool, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        stdout, stderr = capsys.readouterr()
        assert code == status, stderr
        return stdout, stderr

    return run


@pytest.fixture
def tiny_yaml(tiny_cfg, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg.dump())
    return path


def test_tool(run, tiny_cfg, tiny_yaml, tmp_path):
    figures = tmp_path / "figures.json"
    stdout, _ = run(tiny_yaml, "--size", "60", "90", "--batch", "2", "--json", figures)
    cost = analyze(build_network(tiny_cfg), (2, 3, 64, 96)).modules
    saved = json.loads(figures.read_text())[str(tiny_yaml)]
    assert (saved["padded"], saved["flops"]) == ("64 x 96", cost[""].flops)
    assert saved["modules"]["backbone"] == cost["backbone"]._asdict()
    lines = [line.split() for line in stdout.splitlines()]
    assert ["backbone.res2"] in [line[:1] for line in lines]
    assert [str(tiny_yaml), "64", "x", "96", f"{cost[''].parameters / 1e6:.2f}"] in [
        line[:5] for line in lines
    ]


def test_tool_averages_over_pictures(run, tiny_cfg, tiny_yaml, tmp_path):
    """Sizes after resizing (shortest edge 64, longest at most 96) and padding to 32."""
    images = [(128, 192), (64, 96), (64, 640), (1, 1)]
    pictures, figures = tmp_path / "pictures.json", tmp_path / "figures.json"
    content = {"images": [{"height": height, "width": width} for height, width in images]}
    pictures.write_text(json.dumps(content))
    run(tiny_yaml, "--pictures", pictures, "--num", 3, "--json", figures)
    network = build_network(tiny_cfg)
    usual, wide = (analyze(network, (1, 3, *size)) for size in ((64, 96), (32, 96)))
    saved = json.loads(figures.read_text())[str(tiny_yaml)]
    assert saved["padded"] == "2 sizes"
    assert saved["flops"] == round((2 * usual.modules[""].flops + wide.modules[""].flops) / 3)
    assert saved["peak_bytes"] == usual.peak_bytes > wide.peak_bytes


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "0", "64"], "at least 1"),
        (["--opts", "MODEL.MASK_FORMER.DEC_LAYERS", "1"], "tiny.yaml: MODEL.MASK_FORMER.DEC_L"),
        (["--pictures", "missing.json"], "missing.json does not exist"),
        (["--pictures", __file__], "no valid JSON"),
    ],
)
def test_mistakes(run, tiny_yaml, arguments, message):
    _, stderr = run(tiny_yaml, *arguments, status=2)
    assert message in stderr

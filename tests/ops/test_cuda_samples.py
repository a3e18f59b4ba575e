"""The arithmetic of the CUDA kernels, compiled for the CPU, against the float64 reference."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mask2former_ops import ms_deform_attn_reference

SHAPES = [(5, 7), (1, 1), (3, 2)]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in "BSMDQLP"]


class Level(ctypes.Structure):
    _fields_ = [("height", ctypes.c_int), ("width", ctypes.c_int), ("first", ctypes.c_uint32)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = Path(__file__).parent / "cuda_samples_on_host.cpp"
    path = tmp_path_factory.mktemp("samples") / "samples.so"
    command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def pointers(*tensors):
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


@needs_compiler
def test_forward_and_backward(library):
    batch, heads, channels, queries, points = 2, 3, 4, 11, 4
    pixels = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, pixels, heads, channels, dtype=torch.float64)
    # Far outside, at the border, inside; and what is no number.
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=torch.float64)
    locations = 3 * locations - 1
    locations[0, 0, 0, 0, :, 0] = torch.tensor([0.0, 1.0, torch.inf, torch.nan])
    weights = torch.randn(batch, queries, heads, len(SHAPES), points, dtype=torch.float64)
    grad = torch.randn(batch, queries, heads * channels, dtype=torch.float64)

    levels, first = (Level * len(SHAPES))(), 0
    for i, (height, width) in enumerate(SHAPES):
        levels[i] = Level(height, width, first)
        first += height * width
    sizes = Sizes(batch, pixels, heads, channels, queries, len(SHAPES), points)
    inputs = (value, locations, weights)
    out = torch.zeros(batch, queries, heads * channels, dtype=torch.float64)
    library.forward(sizes, levels, *pointers(*inputs, out))

    grads = [torch.zeros_like(tensor) for tensor in inputs]
    library.backward(sizes, levels, *pointers(*inputs, grad, *grads))

    # Of what is not finite the reference makes nothing defined; it counts as far outside.
    inputs = (value, torch.where(locations.isfinite(), locations, 9), weights)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    expected = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    torch.testing.assert_close(out, expected.detach())
    for ours, theirs in zip(grads, torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(ours, theirs)

import json
import time

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from mask2former.evaluation import inference_on_dataset


class Head(nn.Module):
    def forward(self, x):
        time.sleep(0.05)
        return x


class Model(nn.Module):
    """Takes 0.05 s in the network and 0.02 s after it, per batch."""

    def __init__(self, head="sem_seg_head"):
        super().__init__()
        self.add_module(head, Head())
        self.batches = []

    def forward(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        next(self.children())(torch.zeros(1))
        time.sleep(0.02)
        self.batches.append(len(batch))
        return [{"answer": picture["image_id"]} for picture in batch]


class Evaluator(DatasetEvaluator):
    def reset(self):
        self.pairs = []

    def process(self, inputs, outputs):
        self.pairs += [(x["image_id"], y["answer"]) for x, y in zip(inputs, outputs, strict=True)]

    def evaluate(self):
        time.sleep(0.03)
        return {"task": {"right": sum(a == b for a, b in self.pairs), "empty": float("nan")}}


LOADER = [[{"image_id": i}] for i in range(5)]


@pytest.mark.parametrize("size, batches", [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_batches(size, batches):
    model = Model().train()
    results = inference_on_dataset(model, LOADER, [Evaluator()], ims_per_batch=size)
    assert model.batches == batches and results["task"]["right"] == 5
    assert model.training


def test_times_and_results_are_kept(tmp_path):
    model = Model()
    inference_on_dataset(model, LOADER, Evaluator(), ims_per_batch=2, output_dir=tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["results"] == {"task": {"right": 5, "empty": None}} and content["pictures"] == 5
    seconds = content["seconds"]
    assert seconds["model"] >= 0.15 and 0.06 <= seconds["post-processing"] < seconds["model"]
    assert seconds["scoring at the end"] >= 0.03
    assert not model.sem_seg_head._forward_hooks


def test_a_model_without_a_head_is_timed_as_a_whole(tmp_path):
    inference_on_dataset(Model("other"), LOADER, Evaluator(), output_dir=tmp_path)
    seconds = json.loads((tmp_path / "results.json").read_text())["seconds"]
    assert seconds["model"] >= 0.35 and "post-processing" not in seconds

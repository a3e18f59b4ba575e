#!/usr/bin/env python
"""Measure speed, as ratios within one run on one machine.

    python tools/benchmark.py op                  # an 800 x 1216 picture, float32, batch 1
    python tools/benchmark.py op --size 1024 1024 --batch 2 --dtype bfloat16 --device cuda
    python tools/benchmark.py convolution         # 3x3, of such a picture's maps
    python tools/benchmark.py inference --config-file X.yaml --size 800 1216 [KEY VALUE ...]
    python tools/benchmark.py training --config-file X.yaml --size 512 512 [KEY VALUE ...]
    python tools/benchmark.py postprocessing --size 800 1216
    python tools/benchmark.py evaluation
    python tools/benchmark.py loading --config-file X.yaml --dataset my_data

``op``: multi-scale deformable attention, compiled against PyTorch's own operators.
``convolution``: 3x3 convolutions on the CPU, by Winograd's filtering against torch's.
``inference``: a model, part by part, against Hugging Face's of the same weights.
``training``: a step of it, against Hugging Face's of the same weights.
``postprocessing``: from logits to segmentations, against the published order of work.
``evaluation``: figures from files of predictions, against the tools of the field.
``loading``: a mapper, pictures and masks, against the published order of work.

Times are medians, with the least and the most in parentheses; --json FILE keeps them.
"""

import argparse

import torch
from benchmarking import (
    Report,
    convolution,
    evaluation,
    inference,
    loading,
    op,
    postprocessing,
    training,
)

from mask2former.errors import report_user_errors

COMMANDS = {
    "op": op,
    "convolution": convolution,
    "inference": inference,
    "training": training,
    "postprocessing": postprocessing,
    "evaluation": evaluation,
    "loading": loading,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, description=module.__doc__))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = Report(args.json)
    COMMANDS[args.command].run(args, report)
    report.close()


if __name__ == "__main__":
    with report_user_errors():
        main()

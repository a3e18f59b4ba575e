#!/usr/bin/env python
"""Train or evaluate Mask2Former with Detectron2's conventions.

    python tools/train_net.py --config-file configs/quickstart.yaml
    python tools/train_net.py --config-file X.yaml --num-gpus 8 SOLVER.IMS_PER_BATCH 16
    python tools/train_net.py --config-file X.yaml --resume
    python tools/train_net.py --config-file X.yaml --eval-only MODEL.WEIGHTS model_final.pth

Without --num-gpus it uses all GPUs there are, or the CPU.
"""

import argparse

from detectron2.engine import default_argument_parser, launch

from mask2former.errors import report_user_errors
from mask2former.trainer import Trainer, check_num_gpus, evaluate, setup


def main(args: argparse.Namespace) -> None:
    with report_user_errors():
        cfg = setup(args)
        if args.eval_only:
            evaluate(cfg)
            return
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()


def parse_arguments() -> argparse.Namespace:
    parser = default_argument_parser(epilog=__doc__)
    parser.set_defaults(num_gpus=None)
    args = parser.parse_args()
    if not args.config_file:
        parser.error("--config-file is required")
    args.num_gpus = check_num_gpus(args.num_gpus)
    return args


if __name__ == "__main__":
    with report_user_errors():
        arguments = parse_arguments()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )

"""A collective that one rank does not join: argv[1] is that rank, argv[2] what it does instead, `hang` or `die`."""

import logging
import sys
import time

import torch
import torch.distributed as dist

from internvl.parallel.launch import init_distributed, read_rank_env
from internvl.parallel.rank_watchdog import name_missing_ranks

if __name__ == "__main__":
    logging.basicConfig()
    env = read_rank_env()
    init_distributed(env, device="cpu", timeout_s=8)
    with name_missing_ranks(report_within_s=4):
        dist.barrier()
        if env.rank == int(sys.argv[1]):
            if sys.argv[2] == "die":
                sys.exit(7)
            time.sleep(1e6)
        dist.all_reduce(torch.ones(1))

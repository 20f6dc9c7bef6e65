"""Rank watchdog: names the ranks that did not reach a collective in time. The error itself does not say which ones.

    rank 0   all_reduce ... time limit -> reports as present -> rank 1 has not reported -> names it
    rank 1   hangs, or is gone
    rank 2   all_reduce ... time limit -> reports as present -> ...

Reports lie in the process group's store, which works without a collective.
"""

import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

logger = logging.getLogger(__name__)

# gloo and NCCL raise plain RuntimeErrors; these are their words.
_FAILED_COLLECTIVE = re.compile(
    r"gloo|nccl|timed out|timeout|pair closure|connection (was )?(closed|reset)|broken pipe", re.IGNORECASE
)
_REPORT_WITHIN_S = 20.0  # ranks notice a failure at different moments


@contextmanager
def name_missing_ranks(report_within_s: float = _REPORT_WITHIN_S) -> Iterator[None]:
    """Log which ranks are missing when a collective in the block fails; the error is raised again.

    Ranks that wait in the same collective fail within moments of each other and report; one that computes, hangs or is
    gone does not. All ranks enter the block. Without a process group it does nothing.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    rank, store = dist.get_rank(), dist.PrefixStore("rank_watchdog", _get_default_store())
    store.set(f"host of {rank}", socket.gethostname())
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _FAILED_COLLECTIVE.search(str(error)):
            logger.error("a collective failed: %s", _describe_missing(store, report_within_s))
        raise


def _describe_missing(store: dist.Store, report_within_s: float) -> str:
    try:
        store.set(f"presence of {dist.get_rank()}", "here")
        missing = list(range(dist.get_world_size()))
        deadline = time.monotonic() + report_within_s
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not store.check([f"presence of {rank}"])]
            time.sleep(0.1)
        if not missing:
            return "all ranks answer, so the connection between them is broken"
        hosts = {rank: f"host of {rank}" for rank in missing}
        known = [rank for rank in missing if store.check([hosts[rank]])]
        names = [f"rank {rank} on {store.get(hosts[rank]).decode()}" for rank in known]
        return f"{', '.join(names)} did not answer within {report_within_s:.0f} s: it hangs, or is gone"
    except RuntimeError as error:
        return f"the process that holds the group's store (rank 0 or torchrun) does not answer: {error}"

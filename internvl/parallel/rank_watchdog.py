"""Who is missing: a collective that fails says that a rank did not come, not which one.

    rank 0   all_reduce ... time limit -> signs as present -> reads the list: rank 1 has not signed -> names it
    rank 1   hangs, or is gone
    rank 2   all_reduce ... time limit -> signs as present -> ...

The list lies in the process group's store, which needs no collective.
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

# The words of gloo and NCCL, which raise plain RuntimeErrors.
_FAILED_COLLECTIVE = re.compile(
    r"gloo|nccl|timed out|timeout|pair closure|connection (was )?(closed|reset)|broken pipe", re.IGNORECASE
)
_SIGN_WITHIN_S = 20.0  # ranks notice at different moments


@contextmanager
def name_silent_ranks(sign_within_s: float = _SIGN_WITHIN_S) -> Iterator[None]:
    """Log which ranks did not answer when a collective in the block fails; the error goes on.

    Ranks that wait in the same collective fail within moments of each other and sign; one that computes, hangs or is
    gone does not. All ranks enter the block. Without a process group it does nothing.

    Args:
        sign_within_s: How long ranks have to sign, in seconds.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    rank, store = dist.get_rank(), dist.PrefixStore("roll_call", _get_default_store())
    store.set(f"host of {rank}", socket.gethostname())
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or _FAILED_COLLECTIVE.search(str(error)):
            logger.error("a collective failed: %s", _describe_silence(store, sign_within_s))
        raise


def _describe_silence(store: dist.Store, sign_within_s: float) -> str:
    try:
        store.set(f"presence of {dist.get_rank()}", "here")
        silent = list(range(dist.get_world_size()))
        deadline = time.monotonic() + sign_within_s
        while silent and time.monotonic() < deadline:
            silent = [rank for rank in silent if not store.check([f"presence of {rank}"])]
            time.sleep(0.1)
        if not silent:
            return "all ranks answer, so the connection between them is broken"
        hosts = {rank: f"host of {rank}" for rank in silent}
        known = [rank for rank in silent if store.check([hosts[rank]])]
        names = [f"rank {rank} on {store.get(hosts[rank]).decode()}" for rank in known]
        return f"{', '.join(names)} did not answer within {sign_within_s:.0f} s: it hangs, or is gone"
    except RuntimeError as error:
        return f"the process that holds the group's store (rank 0 or torchrun) does not answer: {error}"

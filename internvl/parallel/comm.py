"""Messages between the ranks of a group: tensors sent and received while the caller continues to compute.

All messages of one exchange are posted together (a grouped call on nccl), every rank posts its exchanges in the same
order, and an empty message is left out on both sides. So no rank waits for a message that was never sent.

`group` is the process group whose ranks share the row. None means a single process, never the world: for a row that all
processes share, pass `torch.distributed.group.WORLD`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

AutogradContext = Any  # of a torch.autograd.Function: takes whatever attributes its forward sets


def get_rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """(rank inside the group, ranks of the group); (0, 1) without a group."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


@dataclass(frozen=True)
class Message:
    """One contiguous tensor that is sent to, or comes from, a rank."""

    rank: int  # the other side, counted inside the group
    tensor: Tensor  # what is sent, or where it is put


@dataclass
class Exchange:
    """Messages under way. Their tensors must not be changed, and the received ones not read, before `wait`."""

    works: list[dist.Work]
    messages: Sequence[Message]  # keeps the tensors alive while the backend reads and writes them

    def wait(self) -> None:
        """Wait until everything has arrived and been sent (on a GPU: let its stream wait)."""
        for work in self.works:
            work.wait()
        self.messages = ()


@dataclass
class Messenger:
    """Posts exchanges in a group and counts them."""

    group: dist.ProcessGroup | None  # the ranks; None for a single process
    sent_bytes: list[int] = field(default_factory=list)  # bytes that this rank sent, one entry per exchange

    def post(self, *, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """Start sending and receiving; messages to one rank leave in the order in which it lists them in `receives`.

        The first call of a group must be one that all its ranks join, since nccl connects then: a barrier or any
        collective before the first exchange is enough.
        """
        sends = [message for message in sends if message.tensor.numel()]
        receives = [message for message in receives if message.tensor.numel()]
        self.sent_bytes.append(sum(message.tensor.nbytes for message in sends))
        operations = [
            dist.P2POp(call, message.tensor, group=self.group, group_peer=message.rank)
            for call, messages in ((dist.isend, sends), (dist.irecv, receives))
            for message in messages
        ]
        works = dist.batch_isend_irecv(operations) if operations else []
        return Exchange(works, [*sends, *receives])

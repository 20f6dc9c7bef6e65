"""Steps whose loss or gradient is not a finite number: which documents they are about, and what becomes of them.

    forward     a loss that is not finite makes the gradients of its rank not finite (`poison`)
    backward    engines add gradients up over ranks, so every rank sees a gradient norm that is not finite
    then        all ranks, without a message of their own: no optimiser step, documents named, stop or go on

So a good step costs the ranks nothing but a look at the gradient norm.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from internvl.data.loader import LoaderMark
from internvl.errors import InternVLError
from internvl.train.checkpoint.generators import GeneratorStates

BAD_STEPS_FILE = "bad_steps.jsonl"

Cause = Literal["document loss", "loss", "gradient norm"]

_NUM_NAMED = 8  # documents in a message; the file lists all
_CAUSES: tuple[Cause, ...] = ("document loss", "loss", "gradient norm")


class NonFiniteStep(InternVLError):
    """The loss or the gradient of a step is not a finite number."""


def poison(loss: Tensor) -> Tensor:
    """A loss that is not finite becomes nan, which its backward pass hands to every gradient; others stay as they are.

    Needed for infinity, whose gradient may well be finite.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


@dataclass
class MicroBatch:
    """What is known of a row in the step in progress; tensors stay on the device.

    Attributes:
        refs: (documents, 2) int64, data set and row of every document; None when the batch did not say.
        losses: (documents,) sum(w * CE) of this rank's tokens; None when the loss does not give them.
        loss: Scalar, as the backward pass saw it.
    """

    refs: Tensor | None
    losses: Tensor | None = None
    loss: Tensor | None = None

    def name_documents(self) -> list[tuple[Cause, int, int]]:
        """(cause, data set, row) of its documents; those with a bad loss of their own, if there are any."""
        if self.refs is None:
            return []
        refs = self.refs.tolist()
        if self.losses is not None:
            bad = [ref for ref, loss in zip(refs, self.losses.tolist(), strict=True) if not math.isfinite(loss)]
            if bad:
                return [("document loss", source, row) for source, row in bad]
        is_bad = self.loss is not None and not bool(torch.isfinite(self.loss))
        return [("loss" if is_bad else "gradient norm", source, row) for source, row in refs]


@dataclass
class StepInProgress:
    """What a step that may turn out bad is taken back to, and what is known of its rows.

    Attributes:
        mark: Position of the data before the step.
        generators: Random generators before the step.
        loss_sum: The Trainer's running sum of losses before the step.
        micro_batches: Rows so far.
    """

    mark: LoaderMark
    generators: GeneratorStates
    loss_sum: Tensor
    micro_batches: list[MicroBatch]


@dataclass(frozen=True)
class BadStep:
    """A step that was left out.

    Attributes:
        step: Its number, from 1.
        cause: What was not finite: the loss of single documents, the loss of rows, or the gradient norm alone.
        documents: (data set, row in its annotation file from 0): those documents, the rows' documents, or the step's.
    """

    step: int
    cause: Cause
    documents: tuple[tuple[str, int], ...] = field(default=())

    def describe(self) -> str:
        """One line."""
        shown = [f"{source}, row {row}" for source, row in self.documents[:_NUM_NAMED]]
        if len(self.documents) > _NUM_NAMED:
            shown.append(f"and {len(self.documents) - _NUM_NAMED} more in {BAD_STEPS_FILE}")
        what = {
            "document loss": "the loss is not finite for",
            "loss": "the loss is not finite for a row of",
            "gradient norm": "the gradient norm is not finite, while the losses are, in a step of",
        }[self.cause]
        return f"step {self.step}: {what} [{'; '.join(shown) or 'unknown documents'}]"

    def append_to(self, folder: Path) -> None:
        """Add a line `{"step", "cause", "documents": [{"source", "row"}, ...]}` to the run's list."""
        documents = [{"source": source, "row": row} for source, row in self.documents]
        with (folder / BAD_STEPS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(self), "documents": documents}, ensure_ascii=False) + "\n")


def find_cause(step: int, named: Sequence[tuple[Cause, int, int]], sources: Sequence[str]) -> BadStep:
    """The step's cause from what all ranks name: the most exact kind that any of them gives.

    Args:
        step: Number of the step.
        named: What `MicroBatch.name_documents` gave on all ranks; those that share a row name documents repeatedly.
        sources: Names of the data sets.
    """
    for cause in _CAUSES:
        refs = dict.fromkeys((source, row) for kind, source, row in named if kind == cause)
        if refs:
            return BadStep(step, cause, tuple((sources[source], row) for source, row in refs))
    return BadStep(step, "gradient norm")

"""Bad steps: optimiser steps whose loss or gradient is not finite are left out, with the documents named.

    forward     a non-finite loss makes every gradient of its rank NaN (`spread_nan`)
    backward    the engines sum gradients over ranks, so every rank sees a non-finite gradient norm
    then        all ranks leave the step out, name its documents, and stop or go on

A good step costs one look at the gradient norm, and no message between ranks.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

from internvl.data.loader import LoaderMark
from internvl.errors import InternVLError
from internvl.train.checkpoint.generators import GeneratorStates

logger = logging.getLogger(__name__)

BAD_STEPS_FILE = "bad_steps.jsonl"

Policy = Literal["stop", "skip"]
Cause = Literal["document loss", "loss", "gradient norm"]

_NUM_NAMED = 8  # documents in a message; the file lists all
_CAUSES: tuple[Cause, ...] = ("document loss", "loss", "gradient norm")  # the most exact one first


class NonFiniteStep(InternVLError):
    """The loss or the gradient of a step is not finite."""


def spread_nan(loss: Tensor) -> Tensor:
    """Replace a non-finite loss with NaN, which its backward pass hands to every gradient; keep a finite one."""
    # Infinity would not do: its gradient may well be finite, and other ranks would not notice.
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)


@dataclass(frozen=True)
class MicroBatch:
    """What is known of one row of the step in progress; tensors stay on the device until a step turns out bad."""

    refs: Tensor | None  # (documents, 2) int64, data set and row of every document; None when the batch did not say
    # (documents,) sum(w * CE) over this rank's tokens; None when the loss does not give them
    losses: Tensor | None = None
    loss: Tensor | None = None  # scalar, as the backward pass saw it

    def name_documents(self) -> list[tuple[Cause, int, int]]:
        """(cause, data set, row) of its documents; only those with a bad loss of their own, if there are any."""
        if self.refs is None:
            return []
        refs = self.refs.tolist()
        if self.losses is not None:
            bad = [ref for ref, loss in zip(refs, self.losses.tolist(), strict=True) if not math.isfinite(loss)]
            if bad:
                return [("document loss", source, row) for source, row in bad]
        is_bad = self.loss is not None and not bool(torch.isfinite(self.loss))
        return [("loss" if is_bad else "gradient norm", source, row) for source, row in refs]


@dataclass(frozen=True)
class BadStep:
    """A step that was left out."""

    step: int  # its number, from 1
    cause: Cause  # what was not finite: the loss of single documents, the loss of rows, or only the gradient norm
    # (data set, row in its annotation file from 0): those documents, the rows' documents, or the step's
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
    """Choose the most exact cause among what `MicroBatch.name_documents` of all ranks gave (a document may repeat)."""
    for cause in _CAUSES:
        refs = dict.fromkeys((source, row) for kind, source, row in named if kind == cause)
        if refs:
            return BadStep(step, cause, tuple((sources[source], row) for source, row in refs))
    return BadStep(step, "gradient norm")


@dataclass(frozen=True)
class StateBeforeStep:
    """What a bad step is taken back to: position of the data, random generators, running sum of the losses."""

    mark: LoaderMark
    generators: GeneratorStates
    loss_sum: Tensor


class BadSteps:
    """Follows the step in progress; names the documents of a bad one and decides whether the run stops there.

    Args:
        policy: `stop` at the first bad step, or `skip` bad steps.
        limit: With `skip`, stop at this many bad steps in a row.
        sources: Names of the data sets.
        folder: Where bad steps are listed; None: another rank does it.
    """

    before: StateBeforeStep  # before the step in progress

    def __init__(self, policy: Policy, *, limit: int, sources: Sequence[str], folder: Path | None):
        self.policy, self.limit, self.sources, self.folder = policy, limit, tuple(sources), folder
        self._rows: list[MicroBatch] = []
        self._num_in_a_row = 0

    def begin_step(self, mark: LoaderMark, loss_sum: Tensor) -> None:
        """Remember the state that a bad step is taken back to; `loss_sum` may change afterwards."""
        self.before = StateBeforeStep(mark, GeneratorStates.read(), loss_sum.clone())
        self._rows = []

    def note_row(self, row: MicroBatch) -> None:
        """Note a row of the step in progress."""
        self._rows.append(row)

    def note_good_step(self) -> None:
        """A good step ends a sequence of bad ones."""
        self._num_in_a_row = 0

    def name_bad_step(self, number: int) -> BadStep:
        """List what is wrong with the step in progress. Collective over all ranks."""
        self._num_in_a_row += 1
        named = gather_object([entry for row in self._rows for entry in row.name_documents()])
        bad_step = find_cause(number, named, self.sources)
        if self.folder is not None:
            bad_step.append_to(self.folder)
            logger.warning("%s; no optimiser step", bad_step.describe())
        return bad_step

    def blame_engine(self, bad_step: BadStep) -> NonFiniteStep:
        """The error of a bad step that DeepSpeed did not leave out."""
        return NonFiniteStep(
            f"{bad_step.describe()}; DeepSpeed has taken the step, so the weights are lost: start again from the last "
            "checkpoint, with ZeRO 1, 2 or 3 and without bf16.check_grad_overflow false, which leave such steps out"
        )

    def judge(self, bad_step: BadStep) -> NonFiniteStep | None:
        """The error that stops the run after it has saved the state before the step; None: the run goes on."""
        if self.policy == "skip" and self._num_in_a_row < self.limit:
            return None
        repeated = f", as in {self.limit - 1} steps before it (--max_bad_steps {self.limit})"
        return NonFiniteStep(
            bad_step.describe()
            + (repeated if self.policy == "skip" else "")
            + f"; the state before it is checkpoint-{bad_step.step - 1}: repair or remove the documents, lower "
            "--learning_rate"
            + (", or pass --nan_policy skip" if self.policy == "stop" else "")
            + ", and start the same command again"
        )

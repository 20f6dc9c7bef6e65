"""transformers' Trainer with this project's rows and this project's loss; everything else is the library's.

The loss of an optimiser step is one weighted mean over all rows of the step, whichever process holds them:

    loss = sum(w * CE) / D,    D = sum(w) over every rank and every micro-batch of the step

Engines (DDP, DeepSpeed ZeRO) average gradients over the R ranks and add them up over micro-batches. Every micro-batch
therefore contributes R * sum(w * CE) / D, and the average is the formula above. Without `all_gather` D is the sum of
the rank's own weights, and the loss the mean of the ranks' means. A rank without targets contributes 0.

Ranks that share a row (sequence parallelism, `SharedRow`) all get the whole row and their own tiles of it. Each of
them contributes the loss of its own tokens, so that the sum over ranks holds every target once; the row's weights are
counted once as well.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, Trainer

from internvl.data.loader import Batch, TrainLoader
from internvl.data.position import merge_positions
from internvl.model.constants import IGNORE_INDEX
from internvl.model.loss import LossReduction, build_loss_weight, weighted_cross_entropy
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.row import SharedRow
from internvl.parallel.vision import agree_on_batches
from internvl.train.arguments import TrainingArguments
from internvl.train.checkpointing import (
    POSITION_FILE,
    check_num_ranks,
    explain_failed_write,
    list_files,
    publish_checkpoint,
    read_position,
    remove_partial_saves,
    replace_files,
    rotate_checkpoints,
    staging_folder,
    write_json,
)
from internvl.train.liger import liger_cross_entropy
from internvl.train.metrics import RowStatistics, StepReport
from internvl.train.trainable import merge_lora

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossOptions:
    """How tokens are weighted.

    Attributes:
        reduction: Weight of a target in a document of n targets: `token` 1, `sample` 1/n, `square` 1/sqrt(n).
        all_gather: Divide by the sum of weights over all ranks, not by the rank's own.
        kernel: What computes it: `chunked` (internvl/model/loss.py) or `liger` (train/liger.py, CUDA).
    """

    reduction: LossReduction = "token"
    all_gather: bool = False
    kernel: Literal["chunked", "liger"] = "chunked"


def scaled_denominator(own_sum: Tensor, world_sum: Tensor | None, world_size: int) -> Tensor:
    """What a micro-batch's sum(w * CE) is divided by, given that the engine averages over `world_size` ranks.

    Args:
        own_sum: Sum of the weights of this rank over the micro-batches of the step, float32 scalar.
        world_sum: The same over all ranks; None when every rank uses its own.
        world_size: Number of data-parallel ranks, R.

    Returns:
        D / R, or the rank's own sum. 1 where there is nothing to divide: all weights are 0 then, and so is the loss.
    """
    denominator = own_sum if world_sum is None else world_sum / world_size
    return torch.where(denominator > 0, denominator, 1.0)


def mask_damaged(batch: Batch, damaged: Tensor) -> None:
    """Take the labels of damaged documents out of a row.

    Args:
        batch: A row; its labels are replaced.
        damaged: (documents,) not 0 for those that are damaged.
    """
    borders = batch["cu_seqlens"].reshape(-1).to(damaged.device, torch.int64)
    is_damaged = torch.repeat_interleave(damaged > 0, borders.diff()).to(batch["labels"].device)
    batch["labels"] = batch["labels"].masked_fill(is_damaged, IGNORE_INDEX)


class V2PETrainer(Trainer):
    """Trains an InternVL chat model on the rows of a `TrainLoader`.

    Args:
        model: The model.
        args: Training arguments; `max_steps` must be set (the loader has no end).
        loader: Batches of this rank. It shards by itself; it is used as it is.
        tokenizer: Saved beside the weights.
        loss: Token weights and denominator.
        max_row_tokens: Row limit, for the fill rate; None without packing.
        shared_row: How rows are shared among ranks; None: every rank has rows of its own.
        companions: Further files that are copied beside saved weights (generation_config.json).
    """

    loss_is_scaled_for_ga = True  # the denominator covers the whole optimiser step

    def __init__(
        self,
        model: InternVLChatModel,
        args: TrainingArguments,
        *,
        loader: TrainLoader,
        tokenizer: PreTrainedTokenizerBase,
        loss: LossOptions | None = None,
        max_row_tokens: int | None = None,
        shared_row: SharedRow | None = None,
        companions: Iterable[Path] = (),
    ):
        super().__init__(model=model, args=args)
        self.model_accepts_loss_kwargs = False  # the Trainer must not rescale by its own item count
        self.loader = loader
        self.tokenizer = tokenizer
        self.loss_options = loss or LossOptions()
        self.statistics = RowStatistics(max_row_tokens)
        self.companions = tuple(companions)
        self.shared_row = shared_row
        self._staging: Path | None = None
        self._weight_names: set[str] = set()
        # The loader goes on by itself (`train`); the Trainer's way passes over rows, and wants a torch DataLoader.
        self._keeps_data_position = not args.ignore_data_skip
        args.ignore_data_skip = True
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(StepReport(show_bar=not args.disable_tqdm))

    def get_train_dataloader(self) -> Any:
        """Our loader as it is: already sharded, endless, one row per batch."""
        return self.loader

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train; from a checkpoint on, if one is given, data included.

        Args:
            resume_from_checkpoint: A checkpoint folder.
            kwargs: As transformers' Trainer takes them.

        Raises:
            CheckpointError: The checkpoint does not say where its data goes on, or a checkpoint cannot be written.
            ConfigError: Its data position or its parts of the optimiser do not fit this run.
        """
        if self.args.should_save:
            remove_partial_saves(self._run_folder)
        if resume_from_checkpoint is not None:
            if self.is_deepspeed_enabled:
                check_num_ranks(Path(resume_from_checkpoint), self.args.world_size)
            if self._keeps_data_position:
                self.loader.load_state_dict(read_position(Path(resume_from_checkpoint)))
            else:
                logger.warning("--ignore_data_skip True: the data starts from its beginning")
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, where the checkpoint was that of the last step: the loop would train one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def _run_folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside; it gets its name when every rank has written its part.

            every rank   weights, optimiser shard, generators   -> .saving/checkpoint-N
            all          data positions, lists of files         -> rank 0
            rank 0       checks, complete.json, rename          -> checkpoint-N; then older ones are deleted

        Raises:
            CheckpointError: The disk is full, or the checkpoint is not what was meant to be written.
        """
        folder = staging_folder(self._run_folder) / f"checkpoint-{self.state.global_step}"
        with self._clean_staging(), explain_failed_write(self._run_folder):
            super()._save_checkpoint(model, trial)
            positions = gather_object([self.loader.state_dict()])
            if self.args.should_save:
                write_json(folder / POSITION_FILE, merge_positions(positions))
            # Each rank has passed the gathering above, so its files are written; a node's first rank sees all of them.
            listings = gather_object([list_files(folder) if self.args.local_process_index == 0 else {}])
            if self.args.should_save:
                self._publish(folder, listings)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _clean_staging(self) -> Iterator[None]:
        """Nothing half-written lies in the way before a save, or takes space after one."""
        self._staging = staging_folder(self._run_folder)
        if self.args.should_save:
            remove_partial_saves(self._run_folder)
        self.accelerator.wait_for_everyone()
        try:
            yield
        finally:
            self._staging = None
            if self.args.should_save:
                remove_partial_saves(self._run_folder)

    def _publish(self, folder: Path, listings: list[dict[str, int]]) -> None:
        checkpoint = publish_checkpoint(
            folder, listings=listings, weight_names=self._weight_names, num_ranks=self.args.world_size
        )
        best = self.state.best_global_step
        rotate_checkpoints(
            checkpoint,
            keep=self.args.save_total_limit,
            protected=None if best is None else self._run_folder / f"checkpoint-{best}",
        )

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device) -> tuple[list[Batch], Tensor]:
        """Micro-batches of an optimiser step, and the denominator of their loss."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_sharing, is_first = 1, True
        if self.shared_row is not None:
            num_sharing, is_first = self.shared_row.grid.group_size, self.shared_row.grid.group_rank == 0
        for batch in batches:
            damaged = batch.pop("damaged_documents", None)
            if damaged is not None and self.shared_row is not None:
                mask_damaged(batch, self.shared_row.agree_on(damaged.to(device)))
            self.statistics.note(batch, counts_row=is_first)
        own_sum = torch.stack([self._weigh(batch)[:, 1:].sum() for batch in batches]).sum().to(device) / num_sharing
        world_sum = self.accelerator.reduce(own_sum, reduction="sum") if self.loss_options.all_gather else None
        return batches, scaled_denominator(own_sum, world_sum, self.accelerator.num_processes)

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch=None):
        """Loss of a micro-batch; `num_items_in_batch` is the denominator that `get_batch_samples` returned.

        The weights are made here, behind the Trainer's transfer to the device, which casts floats to bf16.
        """
        outputs = model(
            **inputs,
            loss_weight=self._weigh(inputs),
            loss_denominator=num_items_in_batch,
            loss_function=liger_cross_entropy if self.loss_options.kernel == "liger" else weighted_cross_entropy,
            use_cache=False,
            row_sharing=self.shared_row,
            num_vit_batches=self._count_vit_batches(inputs),
        )
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _count_vit_batches(self, batch: Batch) -> int | None:
        """Runs of the vision tower that all ranks make: sharded weights are gathered in each of them."""
        size = cast(InternVLChatModel, self.model).vit_batch_size
        if size is None:
            return None
        return agree_on_batches(len(batch["pixel_values"]), size, device=self.args.device)

    def _weigh(self, batch: Batch) -> Tensor:
        return build_loss_weight(batch["labels"], batch["cu_seqlens"], self.loss_options.reduction)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed, fill rate and skipped documents of all ranks to a report."""
        self.state.epoch = self.state.global_step / self.state.max_steps  # the loop counts from where it resumed
        if "loss" in logs:
            skipped = torch.tensor([self.loader.ledger.num_skipped], dtype=torch.float64)
            counts = torch.cat([self.statistics.take_counts(), skipped]).to(self.args.device)
            *totals, num_skipped = self.accelerator.reduce(counts, reduction="sum").cpu()
            logs |= {**self.statistics.describe(torch.stack(totals)), "skipped_documents": float(num_skipped)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the library's formula takes pixels for tokens."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write weights, config, tokenizer and companions; all files appear at once.

        The run's own folder gets plain InternVL2 weights (adapters folded in); checkpoint folders keep adapters,
        which resuming needs.
        """
        if not self.args.should_save:
            return
        model = cast(InternVLChatModel, self.model)
        folder = Path(output_dir) if output_dir else self._run_folder
        state = dict(model.state_dict() if state_dict is None else state_dict)
        self._weight_names = set(state) - set(model.all_tied_weights_keys)
        if folder == self._run_folder:
            state = merge_lora(state)
        with explain_failed_write(self._run_folder), replace_files(folder) as staging:
            model.save_pretrained(staging, state_dict=state)
            self.tokenizer.save_pretrained(staging)
            for companion in self.companions:
                (staging / companion.name).write_bytes(companion.read_bytes())
            torch.save(self.args, staging / "training_args.bin")

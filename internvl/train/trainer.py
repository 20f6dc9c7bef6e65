"""The Trainer: transformers' Trainer with this project's rows, loss, checkpoints and reports.

It only connects hooks of transformers with small objects, each of which can be tested without it:

    step_loss.py            LossOptions, DocumentLoss   weights, denominator, losses by document
    bad_steps.py            BadSteps                    steps that are not finite: named, left out, stop or go on
    checkpoint/writing.py   CheckpointWriter            stage, save, publish, rotate
    run/window.py           Window                      counts and report of the steps since the last log
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DummyOptim
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import TrainOutput

from internvl.data.collate import Batch
from internvl.data.loader import TrainLoader
from internvl.errors import CheckpointError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.shared_row import SharedRow
from internvl.parallel.vision import agree_on_batches
from internvl.train.arguments import TrainingArguments
from internvl.train.bad_steps import BadSteps, MicroBatch, spread_nan
from internvl.train.checkpoint.background import defer_saves
from internvl.train.checkpoint.resharding import RestoreSettings, check_engine
from internvl.train.checkpoint.writing import CheckpointWriter, PublishWhenWritten
from internvl.train.liger import liger_cross_entropy
from internvl.train.parameter_groups import apply_schedule, build_parameter_groups, read_learning_rates
from internvl.train.run.metrics import StepReport
from internvl.train.run.window import Window
from internvl.train.state_files import WRONG_CONTENT
from internvl.train.step_loss import DocumentLoss, LossOptions, ignore_damaged, scaled_denominator


class V2PETrainer(Trainer):
    """Trains an InternVL chat model on the rows of this rank, or on rows that it shares with others (`shared_row`).

    `max_steps` must be set, since the loader has no end.
    """

    # Private names of transformers that are used here, since no callback gives what they give:
    #   _get_grad_norm    is asked once per step, before the optimiser's step: the moment to leave a bad step out
    #   _tr_loss          the running sum of losses, which a bad step is taken out of again
    #   _load_optimizer_and_scheduler   wrapped: afterwards the schedule of this run gives the learning rates
    #   _prepare_input    wrapped: batches go to the GPU without waiting
    #   _save_checkpoint  wrapped, _get_output_dir: a checkpoint is written aside and renamed when it is complete
    #   _save_optimizer_and_scheduler   hands the large files of a checkpoint to the writer, which writes them later
    #   _save             writes weights; the public save_model gathers them from all ranks and calls it

    args: TrainingArguments
    model: InternVLChatModel
    loss_is_scaled_for_ga = True  # the denominator covers the whole optimiser step

    def __init__(
        self,
        model: InternVLChatModel,
        args: TrainingArguments,
        *,
        loader: TrainLoader,
        writer: CheckpointWriter,
        window: Window,
        loss: LossOptions,
        shared_row: SharedRow | None = None,
        host_group: dist.ProcessGroup | None = None,
    ):
        super().__init__(model=model, args=args)
        self.model_accepts_loss_kwargs = False  # the Trainer must not rescale by its own item count
        self.loader, self.writer, self.window = loader, writer, window
        self.loss_options, self.shared_row, self.host_group = loss, shared_row, host_group
        folder = writer.output_dir if args.should_save else None
        self.bad_steps = BadSteps(args.nan_policy, limit=args.max_bad_steps, sources=window.sources, folder=folder)
        self._group_names: list[str] = []
        self._base_rates: list[float] = []
        # The Trainer would look at the loss of every micro-batch; `_get_grad_norm` looks once per step instead.
        args.logging_nan_inf_filter = False
        args.ignore_data_skip = True  # the loader goes on by itself; the Trainer would read rows and drop them
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(StepReport(show_bar=not args.disable_tqdm))
        self.add_callback(PublishWhenWritten(writer))

    def get_train_dataloader(self) -> TrainLoader:  # type: ignore[override]
        """Our loader as it is: endless, one row per batch."""
        return self.loader

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple:  # type: ignore[override]
        """One epoch of `max_steps` steps: a run that resumes after its last step has no epoch left."""
        _, *values = super().set_initial_training_values(args, dataloader)
        return 1, *values

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:  # type: ignore[override]
        """Train; from a checkpoint on, if one is given. Its data position is set on the loader before.

        Raises:
            CheckpointError: A checkpoint cannot be converted, or cannot be written.
            ConfigError: The optimiser of the checkpoint does not fit this run.
        """
        self.writer.remove_leftovers()
        if resume_from_checkpoint is not None:
            resume_from_checkpoint = str(self._prepare_resume(Path(resume_from_checkpoint)))
        result = super().train(resume_from_checkpoint=resume_from_checkpoint)
        self.writer.finish()
        return result

    def _prepare_resume(self, checkpoint: Path) -> Path:
        """Make the checkpoint one that the engine can load."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        check_engine(checkpoint, zero_stage=0 if plugin is None else plugin.zero_stage)
        if plugin is None or (copy := self.writer.reshard(checkpoint)) is None:
            return checkpoint
        # Before DeepSpeed builds its engine.
        plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True
        self.add_callback(RestoreSettings(copy))
        return copy

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of `--optim`, or DeepSpeed's own, with learning rates by part of the model."""
        if self.optimizer is None or (isinstance(self.optimizer, DummyOptim) and not self._group_names):
            groups = build_parameter_groups(
                self.model,
                self.args.learning_rates,
                decayed=set(self.get_decay_parameter_names(self.model)),
                weight_decay=self.args.weight_decay,
            )
            self._group_names = [group["name"] for group in groups]
            self._base_rates = [group["lr"] for group in groups]
            if isinstance(self.optimizer, DummyOptim):
                self.optimizer.params = groups  # of which DeepSpeed builds its optimiser
            else:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except WRONG_CONTENT as error:
            raise CheckpointError(
                f"the optimiser of {checkpoint} does not fit this run ({error}); resume with the same learning-rate, "
                "weight-decay and freezing options"
            ) from error
        if checkpoint is not None:
            apply_schedule(self._schedule, self._base_rates)

    @property
    def _schedule(self) -> LRScheduler | None:
        return getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # DeepSpeed's wrapper has ours inside

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Micro-batches of an optimiser step, and the denominator of their loss."""
        self.window.begin_step(self.state.global_step, read_learning_rates(self.lr_scheduler, self._group_names))
        self.bad_steps.begin_step(self.loader.mark(), self._tr_loss)
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        grid = None if self.shared_row is None else self.shared_row.grid
        for batch in batches:
            damaged = batch.pop("damaged_documents", None)
            if damaged is not None and self.shared_row is not None:
                # A picture that one rank cannot read takes the document away from all that share the row.
                ignore_damaged(batch, self.shared_row.agree_on(damaged.to(device)))
            self.window.rows.note(batch, counts_row=grid is None or grid.group_rank == 0)
        own_sum = self.loss_options.sum_weights(batches).to(device) / (1 if grid is None else grid.group_size)
        world_sum = self.accelerator.reduce(own_sum, reduction="sum") if self.loss_options.all_gather else None
        return batches, scaled_denominator(own_sum, world_sum, self.accelerator.num_processes)

    def _prepare_input(self, data: Tensor | Any) -> Tensor | Any:
        if isinstance(data, Tensor) and data.is_pinned():
            data = data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Loss of a micro-batch; `num_items_in_batch` is the denominator that `get_batch_samples` returned."""
        refs = inputs.pop("document_refs", None)
        document_loss = DocumentLoss()
        is_chunked = self.loss_options.kernel == "chunked"
        vit_batch_size = self.model.vit_batch_size
        # Made here and not by the loader: the Trainer casts floats to bf16 when it moves a batch to the device.
        loss_weight = self.loss_options.weigh(inputs)
        outputs = model(
            **inputs,
            loss_weight=loss_weight,
            loss_denominator=num_items_in_batch,
            loss_function=document_loss if is_chunked else liger_cross_entropy,
            use_cache=False,
            row_sharing=self.shared_row,
            # All ranks run the vision tower equally often, since ZeRO-3 gathers weights in each run.
            num_vit_batches=None
            if vit_batch_size is None
            else agree_on_batches(len(inputs["pixel_values"]), vit_batch_size, group=self.host_group),
        )
        losses = None
        if is_chunked and refs is not None:
            weights, losses = document_loss.sum_documents(inputs, loss_weight, self.shared_row)
            self.window.rows.note_losses(refs[:, 0], weights, losses)
        loss = spread_nan(outputs.loss)
        self.bad_steps.note_row(MicroBatch(refs, losses, loss.detach()))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        norm = super()._get_grad_norm(model, grad_norm)
        # Without a norm the engine knows. A run in float16 skips steps by design, while it looks for its loss scale.
        is_finite = not self.accelerator.optimizer_step_was_skipped if norm is None else math.isfinite(float(norm))
        is_good = is_finite or self.args.fp16
        self.window.end_step(is_taken=is_good)
        if is_good:
            self.bad_steps.note_good_step()
        else:
            self._leave_out_step(model)
        return norm

    def _leave_out_step(self, model: nn.Module) -> None:
        bad_step = self.bad_steps.name_bad_step(self.state.global_step + 1)
        # DeepSpeed's engine takes its step in the backward pass, unless it saw the same norm.
        if self.is_deepspeed_enabled and not self.accelerator.optimizer_step_was_skipped:
            raise self.bad_steps.blame_engine(bad_step)
        model.zero_grad()  # the optimiser passes over parameters without a gradient
        if error := self.bad_steps.judge(bad_step):
            self._save_checkpoint(model, trial=None, before_step=True)
            self.writer.finish()
            raise error
        self.window.count_bad_step()
        self._tr_loss.copy_(self.bad_steps.before.loss_sum)
        if self.is_deepspeed_enabled:
            # Learning rates follow the step's number, but the Trainer and the engine pass over this step.
            self._schedule.step()  # type: ignore[union-attr]

    def _get_output_dir(self, trial: object) -> str:
        return str(self.writer.folder)

    def _save_checkpoint(self, model: nn.Module, trial: object, *, before_step: bool = False) -> None:
        before = self.bad_steps.before if before_step else None
        if before is not None:
            before.generators.restore()
        # Before a bad step older checkpoints stay: their weights may be the better ones to go back to.
        with self.writer.stage(self.state.global_step, keep_older=before_step) as staged:
            super()._save_checkpoint(model, trial)
            self.collect_counts()
            self.writer.write_progress(
                staged,
                position=self.loader.state_dict(None if before is None else before.mark),
                totals=self.window.totals.to_json(more_seconds=self.window.stopwatch.elapsed()),
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            defer_saves(self.model_wrapped.checkpoint_engine, self.writer.save)
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            for part, name in ((self.optimizer, OPTIMIZER_NAME), (self.lr_scheduler, SCHEDULER_NAME)):
                self.writer.save(part.state_dict(), Path(output_dir, name))  # type: ignore[union-attr]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        state = dict(self.model.state_dict() if state_dict is None else state_dict)
        self.writer.save_model(Path(output_dir or self.writer.output_dir), self.model, state, self.args)

    def collect_counts(self) -> None:
        """Bring the window's counts up to date. Collective."""
        skipped = self.loader.ledger.num_skipped
        self.window.collect(self.accelerator.gather, num_skipped=skipped, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what docs/training.md lists to a report of all ranks."""
        step, max_steps = self.state.global_step, self.state.max_steps
        self.state.epoch = step / max_steps  # the Trainer counts from where it resumed
        if "loss" in logs:
            self.collect_counts()
            self.window.report(logs, step=step, max_steps=max_steps, num_processes=self.args.world_size)
        if "train_loss" in logs:
            logs["train_loss"] = self.window.correct_mean_loss(logs["train_loss"])
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not estimated: the library's formula takes pixels for tokens."""
        return 0

"""transformers' Trainer with this project's rows and this project's loss; everything else is the library's.

The loss of an optimiser step is one weighted mean over all rows of the step, whichever process holds them:

    loss = sum(w * CE) / D,    D = sum(w) over every rank and every micro-batch of the step

Engines (DDP, DeepSpeed ZeRO) average gradients over the R ranks and add them up over micro-batches. Every micro-batch
therefore contributes R * sum(w * CE) / D, and the average is the formula above. Without `all_gather` D is the sum of
the rank's own weights, and the loss the mean of the ranks' means. A rank without targets contributes 0.

Ranks that share a row (sequence parallelism, `SharedRow`) all get the whole row and their own tiles of it. Each of
them contributes the loss of its own tokens, so that the sum over ranks holds every target once; the row's weights are
counted once as well.

A step whose loss or gradient is not finite is left out on all ranks (bad_steps.py). Then the run stops behind a
checkpoint of the state before that step, or goes on (`--nan_policy`).
"""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import DummyOptim, gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, Trainer

from internvl.atomic import write_json
from internvl.data.collate import Batch
from internvl.data.cursor import merge_states
from internvl.data.loader import TrainLoader
from internvl.model.constants import IGNORE_INDEX
from internvl.model.loss import LossReduction, build_loss_weight
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.shared_row import SharedRow
from internvl.parallel.vision import agree_on_batches
from internvl.train.arguments import TrainingArguments
from internvl.train.bad_steps import MicroBatch, NonFiniteStep, StepInProgress, find_cause, poison
from internvl.train.checkpoint.generators import GeneratorStates
from internvl.train.checkpoint.resharding import (
    accept_universal_copy,
    check_engine,
    find_slices,
    read_group_settings,
    restore_settings,
    write_universal_copy,
)
from internvl.train.checkpoint.writing import (
    POSITION_FILE,
    explain_failed_write,
    list_files,
    publish_checkpoint,
    read_position,
    remove_partial_saves,
    replace_model_files,
    rotate_checkpoints,
    staging_folder,
)
from internvl.train.document_loss import DocumentLoss
from internvl.train.liger import liger_cross_entropy
from internvl.train.parameter_groups import LearningRates, build_parameter_groups
from internvl.train.run.counts import Counts, RowStatistics, RunTotals
from internvl.train.run.metrics import (
    StepReport,
    Stopwatch,
    describe_sources,
    describe_window,
    measure_peak_memory,
)
from internvl.train.run.record import RunSummary
from internvl.train.run.utilisation import Workload
from internvl.train.trainable import merge_lora

logger = logging.getLogger(__name__)

TOTALS_FILE = "totals.json"


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
        workload: Counts FLOPs, for the model FLOPs utilisation; None: not reported.
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
        workload: Workload | None = None,
    ):
        super().__init__(model=model, args=args)
        self.model_accepts_loss_kwargs = False  # the Trainer must not rescale by its own item count
        self.loader = loader
        self.tokenizer = tokenizer
        self.loss_options = loss or LossOptions()
        self.companions = tuple(companions)
        self.max_row_tokens = max_row_tokens
        self.workload = workload
        self.sources = tuple(file.spec.name for file in loader.plan.files)
        self.statistics = RowStatistics(len(self.sources))
        self.totals = RunTotals(Counts.zeros(self.sources))
        self.stopwatch = Stopwatch()
        self.num_skipped = 0
        self.peak_memory = 0
        self._window = Counts.zeros(self.sources)
        self._window_steps = self._window_bad_steps = self._bad_steps_in_sequence = self._bad_steps_this_start = 0
        self._step: StepInProgress | None = None
        self._learning_rate_names: list[str] = []
        self._saves_before_step = False
        self._learning_rates: dict[str, float] = {}
        # The Trainer would look at every micro-batch's loss; every step's gradient norm is looked at here instead.
        args.logging_nan_inf_filter = False
        self.shared_row = shared_row
        self._staging: Path | None = None
        self._universal_copy: Path | None = None
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
            ConfigError: Its data position or its optimiser do not fit this run.
        """
        if self.args.should_save:
            remove_partial_saves(self._run_folder)
        if resume_from_checkpoint is not None:
            check_engine(Path(resume_from_checkpoint), zero_stage=self._zero_stage)
            self.totals = RunTotals.read(Path(resume_from_checkpoint, TOTALS_FILE), self.sources)
            if self._keeps_data_position:
                self.loader.load_state_dict(read_position(Path(resume_from_checkpoint)))
            else:
                logger.warning("--ignore_data_skip True: the data starts from its beginning")
            resume_from_checkpoint = str(self._fit_to_ranks(Path(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, where the checkpoint was that of the last step: the loop would train one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def _zero_stage(self) -> int:
        """DeepSpeed's stage; 0 without DeepSpeed."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return 0 if plugin is None else plugin.zero_stage

    def _fit_to_ranks(self, checkpoint: Path) -> Path:
        """The checkpoint, or a copy of it where DeepSpeed saved it with another number of ranks."""
        slices = find_slices(checkpoint)
        if slices is None or slices.num_ranks == self.args.world_size:
            return checkpoint
        logger.info("converting %s from %d to %d ranks", checkpoint, slices.num_ranks, self.args.world_size)
        copies = [write_universal_copy(checkpoint, self._run_folder)] if self.args.should_save else []
        accept_universal_copy(self.accelerator.state.deepspeed_plugin.deepspeed_config)
        self._universal_copy = gather_object(copies)[0]
        return self._universal_copy

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._universal_copy is not None:
            optimizer = cast(Any, self.model_wrapped).optimizer.optimizer
            restore_settings(optimizer, read_group_settings(self._universal_copy))

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
            at = self._step.mark if self._saves_before_step and self._step is not None else None
            positions = gather_object([self.loader.state_dict(at)])
            self._collect_counts()
            if self.args.should_save:
                write_json(folder / POSITION_FILE, merge_states(positions), indent=None)
                write_json(folder / TOTALS_FILE, self.totals.to_json(more_seconds=self.stopwatch.elapsed()))
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
        if not self._saves_before_step:  # older weights may be the better ones to go back to
            rotate_checkpoints(checkpoint, keep=self.args.save_total_limit)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device) -> tuple[list[Batch], Tensor]:
        """Micro-batches of an optimiser step, and the denominator of their loss."""
        self.stopwatch.start(self.state.global_step)
        self._learning_rates = self._read_learning_rates()
        self._step = StepInProgress(self.loader.mark(), GeneratorStates.read(), self._tr_loss.clone(), [])
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
        refs = inputs.pop("document_refs", None)
        document_loss = DocumentLoss()
        is_chunked = self.loss_options.kernel == "chunked"
        outputs = model(
            **inputs,
            loss_weight=self._weigh(inputs),
            loss_denominator=num_items_in_batch,
            loss_function=document_loss if is_chunked else liger_cross_entropy,
            use_cache=False,
            row_sharing=self.shared_row,
            num_vit_batches=self._count_vit_batches(inputs),
        )
        if self._step is not None:
            losses = self._note_losses(refs, inputs, document_loss) if is_chunked else None
            self._step.micro_batches.append(MicroBatch(refs, losses))
        loss = poison(outputs.loss)
        return (loss, outputs) if return_outputs else loss

    def _note_losses(self, refs: Tensor | None, inputs: Batch, document_loss: DocumentLoss) -> Tensor | None:
        """Add up the losses by data set; returns those by document."""
        if refs is None:
            return None
        lengths, num_tokens = inputs["cu_seqlens"].reshape(-1).to(torch.int64).diff(), inputs["input_ids"].shape[1]
        numbers = torch.arange(len(refs), device=refs.device)
        documents = numbers.repeat_interleave(lengths, output_size=num_tokens).unsqueeze(0)
        if self.shared_row is not None:
            documents = self.shared_row.shard(documents)  # padding weighs nothing, whatever document it counts to
        weights, losses = document_loss.sum_documents(documents, num_documents=len(refs))
        self.statistics.note_losses(refs[:, 0], weights, losses)
        return losses

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch=None) -> Tensor:
        """Forward and backward pass of a micro-batch, whose loss is noted."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._step is not None and self._step.micro_batches:
            self._step.micro_batches[-1].loss = loss
        return loss

    # Bad steps ------------------------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient norm, which the Trainer asks for once a step, before the optimiser's step.

        Under DeepSpeed the engine has taken the step by now, or has left it out because of the same norm.

        Raises:
            NonFiniteStep: It is not finite, and the run is to stop then.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        # A run in float16 leaves steps out by design, while it looks for its loss scale.
        is_finite = not self.accelerator.optimizer_step_was_skipped if norm is None else math.isfinite(float(norm))
        is_good = is_finite or self.args.fp16
        self.statistics.end_step(is_taken=is_good)
        self._window_steps += 1
        if is_good:
            self._bad_steps_in_sequence = 0
        else:
            self._leave_out_step(model)
        return norm

    def _leave_out_step(self, model: nn.Module) -> None:
        step, number = cast(StepInProgress, self._step), self.state.global_step + 1
        args = cast(TrainingArguments, self.args)
        named = [entry for batch in step.micro_batches for entry in batch.name_documents()]
        bad_step = find_cause(number, gather_object(named), self.sources)
        if self.args.should_save:
            bad_step.append_to(self._run_folder)
            logger.warning("%s; no optimiser step", bad_step.describe())
        if self.is_deepspeed_enabled and not self.accelerator.optimizer_step_was_skipped:
            raise NonFiniteStep(
                f"{bad_step.describe()}; DeepSpeed has taken the step, so the weights are lost: start again from the "
                "last checkpoint, with ZeRO 1, 2 or 3 and without bf16.check_grad_overflow false, which leave such "
                "steps out"
            )
        model.zero_grad()  # the optimiser passes over parameters without a gradient
        self._bad_steps_in_sequence += 1
        limit = args.max_bad_steps
        if args.nan_policy == "stop" or self._bad_steps_in_sequence >= limit:
            self._save_before_step(model, step)
            is_stopping = args.nan_policy == "stop"
            raise NonFiniteStep(
                bad_step.describe()
                + ("" if is_stopping else f", as in {limit - 1} steps before it (--max_bad_steps {limit})")
                + f"; the state before it is checkpoint-{number - 1}: repair or remove the documents, lower "
                "--learning_rate"
                + (", or pass --nan_policy skip" if is_stopping else "")
                + ", and start the same command again"
            )
        self.totals.bad_steps += 1
        self._window_bad_steps += 1
        self._bad_steps_this_start += 1
        self._tr_loss.copy_(step.loss_sum)
        if self.is_deepspeed_enabled:
            # Learning rates follow the step's number, but the Trainer and the engine pass over this step.
            getattr(self.lr_scheduler, "scheduler", cast(Any, self.lr_scheduler)).step()

    def _save_before_step(self, model: nn.Module, step: StepInProgress) -> None:
        """A checkpoint from which the step in progress is the next one."""
        step.generators.restore()
        self._saves_before_step = True
        self._save_checkpoint(model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    # Optimiser ------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of `--optim`, or DeepSpeed's own, with learning rates by part of the model."""
        is_dummy = isinstance(self.optimizer, DummyOptim)  # DeepSpeed makes it, of the groups that are put in here
        if self.optimizer is None or (is_dummy and not self._learning_rate_names):
            groups = self._build_parameter_groups()
            self._learning_rate_names = [group["name"] for group in groups]
            if is_dummy:
                cast(Any, self.optimizer).params = groups
            else:
                kind, options = self.get_optimizer_cls_and_kwargs(self.args, cast(InternVLChatModel, self.model))
                self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def _build_parameter_groups(self) -> list[dict[str, Any]]:
        args, model = cast(TrainingArguments, self.args), cast(InternVLChatModel, self.model)
        return build_parameter_groups(
            model.named_parameters(),
            LearningRates(
                args.learning_rate, args.vision_learning_rate, args.mlp_learning_rate, args.vit_layer_decay_rate
            ),
            num_vit_layers=len(model.vision_model.encoder.layers),
            decayed=set(self.get_decay_parameter_names(model)),
            weight_decay=args.weight_decay,
        )

    def _read_learning_rates(self) -> dict[str, float]:
        """By group, as the next step will use them; empty where the schedule does not tell."""
        try:
            rates = [float(rate) for rate in cast(Any, self.lr_scheduler).get_last_lr()]
        except (AssertionError, AttributeError):  # DeepSpeed's own schedules before their first step; others never
            return {}
        names = self._learning_rate_names
        return dict(zip(names, rates, strict=True)) if len(rates) == len(names) else {}

    def _get_learning_rate(self) -> float:
        """The first group's in this step: DeepSpeed's own optimiser has moved the schedule on when this is asked."""
        return next(iter(self._learning_rates.values())) if self._learning_rates else super()._get_learning_rate()

    # Reports --------------------------------------------------------------------------------------------------------

    def _count_vit_batches(self, batch: Batch) -> int | None:
        """Runs of the vision tower that all ranks make: sharded weights are gathered in each of them."""
        size = cast(InternVLChatModel, self.model).vit_batch_size
        if size is None:
            return None
        return agree_on_batches(len(batch["pixel_values"]), size, device=self.args.device)

    def _weigh(self, batch: Batch) -> Tensor:
        return build_loss_weight(batch["labels"], batch["cu_seqlens"], self.loss_options.reduction)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what docs/training.md lists to a report, of all ranks."""
        self.state.epoch = self.state.global_step / self.state.max_steps  # the loop counts from where it resumed
        if "loss" in logs:
            self._correct_for_bad_steps(logs)
            logs |= self._describe_window()
        super().log(logs, start_time)

    def _correct_for_bad_steps(self, logs: dict[str, float]) -> None:
        """Means over the steps that were taken; no number stands for a window in which none was."""
        num_taken = self._window_steps - self._window_bad_steps
        if self._window_bad_steps:
            logs["loss"] *= self._window_steps / max(num_taken, 1)
            if not num_taken:
                del logs["loss"]
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            del logs["grad_norm"]
        self._window_steps = self._window_bad_steps = 0

    def _describe_window(self) -> dict[str, float]:
        self._collect_counts()
        window, self._window = self._window, Counts.zeros(self.sources)
        elapsed_s, num_processes = self.stopwatch.lap(), self.args.world_size
        described = describe_window(
            window, elapsed_s=elapsed_s, num_processes=num_processes, max_row_tokens=self.max_row_tokens
        )
        if self.workload is not None:
            described |= self.workload.describe(window, elapsed_s=elapsed_s, num_processes=num_processes)
        described |= {
            "peak_memory_gib": self.peak_memory / 2**30,
            "eta_s": round(self.stopwatch.eta(self.state.global_step, self.state.max_steps), 1),
            "skipped_documents": float(self.num_skipped),
            "bad_steps": float(self.totals.bad_steps),
        }
        if len(set(self._learning_rates)) > 1:
            described |= {f"learning_rate/{name}": rate for name, rate in self._learning_rates.items()}
        return described | describe_sources(window)

    def _collect_counts(self) -> None:
        """Add the counts of all ranks since the last call to the window and to the run's. Collective."""
        own = torch.tensor([self.loader.ledger.num_skipped, measure_peak_memory()], dtype=torch.float64)
        vector = torch.cat([self.statistics.take(), own]).to(self.args.device)
        gathered = cast(Tensor, self.accelerator.gather(vector.unsqueeze(0))).cpu()
        counts = Counts(self.sources, gathered[:, :-2].sum(0))
        self.num_skipped, self.peak_memory = int(gathered[:, -2].sum()), int(gathered[:, -1].max())
        self._window += counts
        self.totals.counts += counts

    def summarise(self, status: str) -> RunSummary:
        """What the run has come to. Collective."""
        self._collect_counts()
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return RunSummary(
            status=status,
            steps=self.state.global_step,
            bad_steps=self.totals.bad_steps,
            skipped_documents=self.num_skipped,
            counts=self.totals.counts,
            seconds=round(self.totals.seconds + self.stopwatch.elapsed(), 3),
            steps_this_start=self.state.global_step - self._initial_global_step,
            seconds_this_start=round(self.stopwatch.elapsed(), 3),
            peak_memory_bytes=self.peak_memory,
            final_loss=losses[-1] if losses else None,
            model=str(self._run_folder.resolve()),
        )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Of the mean loss, steps that were left out are no part."""
        num_steps = self.state.global_step - self._initial_global_step
        factor = num_steps / max(num_steps - self._bad_steps_this_start, 1)
        self._total_loss_scalar *= factor
        self._tr_loss *= factor
        return super()._finalize_training(*args, **kwargs)

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
        with explain_failed_write(self._run_folder), replace_model_files(folder) as staging:
            model.save_pretrained(staging, state_dict=state)
            self.tokenizer.save_pretrained(staging)
            for companion in self.companions:
                (staging / companion.name).write_bytes(companion.read_bytes())
            torch.save(self.args, staging / "training_args.bin")

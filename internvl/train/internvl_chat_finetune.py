"""Fine-tune an InternVL2 checkpoint: `torchrun ... internvl/train/internvl_chat_finetune.py --help`.

shell/launch.sh starts it on one machine or under slurm; the recipes are in shell/internlm2_2b/ and shell/tiny/.
"""

import logging
import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils.logging import disable_progress_bar

from internvl.atomic import write_json
from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.loader import TileShare, TrainLoader, build_train_loader
from internvl.data.meta import load_meta
from internvl.data.packing import PackingLimits
from internvl.data.strides import StrideOptions
from internvl.data.visuals import FrameOptions, TileOptions
from internvl.errors import InternVLError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.grid import Grid, build_grid
from internvl.parallel.launch import RankEnv, finish_distributed, init_distributed, is_restart, read_rank_env
from internvl.parallel.rank_watchdog import name_silent_ranks
from internvl.parallel.shared_row import SHARED_ATTENTION, SharedRow, register_shared_attention
from internvl.train.arguments import (
    Arguments,
    DataTrainingArguments,
    ModelArguments,
    build_training_arguments,
    has_cuda,
    parse_arguments,
    shares_rows,
    ulysses_degree_of,
    validate_arguments,
)
from internvl.train.checkpoint.writing import find_resume_checkpoint
from internvl.train.memory_savings import KeepAttention, keep_freed_memory, tile_mlps
from internvl.train.model_loading import load_training_model, load_training_tokenizer
from internvl.train.run.preemption import EXIT_FAILED_TWICE, EXIT_PREEMPTED, StopAtStepEnd, StopRequest, listen_for_stop
from internvl.train.run.record import (
    RUN_FILE,
    SUMMARY_FILE,
    describe_run,
    fingerprint_data,
    name_device,
    to_json,
    warn_of_changed_data,
)
from internvl.train.run.state import RepeatedFailure, RunJournal, RunState, read_run_state
from internvl.train.run.utilisation import Workload, find_peak_tflops
from internvl.train.trainable import select_trainable
from internvl.train.trainer import LossOptions, V2PETrainer

logger = logging.getLogger(__name__)


def run_training(argv: Sequence[str]) -> int:
    """Train as the flags say, and leave a loadable checkpoint in `--output_dir`.

    Returns:
        Exit code: 0, also where the run had finished before; `EXIT_PREEMPTED` when a signal stopped it.

    Raises:
        InternVLError: Wrong flags, data or checkpoint; before anything is loaded where that is possible.
    """
    with listen_for_stop() as request:
        return _train(*parse_arguments(argv), request=request)


def _train(
    model_args: ModelArguments, data_args: DataTrainingArguments, training: Namespace, *, request: StopRequest
) -> int:
    validate_arguments(model_args, data_args, training)
    state = _begin_attempt(training)
    if state.status == "finished":
        return 0
    checkpoint = find_resume_checkpoint(
        training.output_dir, overwrite=training.overwrite_output_dir, wanted=training.resume_from_checkpoint
    )
    env = read_rank_env()
    on_cpu = training.use_cpu or not has_cuda()
    init_distributed(
        env,
        device="cpu" if on_cpu else "cuda",
        use_deepspeed=bool(training.deepspeed),
        timeout_s=training.ddp_timeout,
    )
    if on_cpu:
        keep_freed_memory()
    _start_logging(training.output_dir, env)
    if checkpoint is not None:
        logger.info("continuing from %s", checkpoint)
    with RunJournal(training.output_dir, state, writes="main" if env.is_main else "never") as journal:
        if env.is_main:
            arguments = Arguments(model_args, data_args, training)
            _record_run(arguments, env=env, checkpoint=checkpoint, attempt=state.attempt)
        return _run_attempt(model_args, data_args, training, checkpoint=checkpoint, journal=journal, request=request)


def _record_run(arguments: Arguments, *, env: RankEnv, checkpoint: str | None, attempt: int) -> None:
    """Write run.json; say what changed in the data since the start that wrote the checkpoint."""
    meta_path, training = str(arguments.data.meta_path), arguments.training
    data = fingerprint_data(meta_path, load_meta(meta_path, data_root=arguments.data.data_root))
    if checkpoint is not None:
        warn_of_changed_data(Path(checkpoint).parent, data)
    device = name_device(use_cpu=training.use_cpu)
    run = describe_run(arguments._asdict(), env=env, data=data, device=device, attempt=attempt)
    write_json(Path(training.output_dir, RUN_FILE), run, default=to_json)


def _run_attempt(
    model_args: ModelArguments,
    data_args: DataTrainingArguments,
    training: Namespace,
    *,
    checkpoint: str | None,
    journal: RunJournal,
    request: StopRequest,
) -> int:
    set_seed(training.seed)

    tokenizer, num_added_tokens = load_training_tokenizer(model_args, data_args.max_seq_length)
    model = load_training_model(
        model_args,
        data_args,
        tokenizer=tokenizer,
        num_added_tokens=num_added_tokens,
        dtype=torch.bfloat16 if training.bf16 and training.deepspeed else torch.float32,
    )
    select_trainable(model, model_args)
    grid = _prepare_for_grid(model, model_args)
    loader = _build_loader(data_args, training, tokenizer=tokenizer, num_image_token=model.num_image_token, grid=grid)
    if training.max_steps <= 0:
        training.max_steps = math.ceil(training.num_train_epochs * loader.rows_per_epoch())

    trainer = V2PETrainer(
        model,
        build_training_arguments(
            training,
            grad_checkpoint=model_args.grad_checkpoint,
            offload_activations=model_args.offload_activations,
        ),
        loader=loader,
        tokenizer=tokenizer,
        loss=LossOptions(data_args.loss_reduction, data_args.loss_reduction_all_gather, data_args.loss_kernel),
        max_row_tokens=data_args.max_packed_tokens if data_args.use_packed_ds else None,
        shared_row=SharedRow(grid) if shares_rows(model_args) else None,
        companions=Path(str(model_args.model_name_or_path)).glob("generation_config.json"),
        workload=Workload(
            model.config,
            model_args,
            peak_tflops=training.peak_tflops or find_peak_tflops(name_device(use_cpu=training.use_cpu)),
        ),
    )
    if model_args.keep_attention:
        trainer.add_callback(KeepAttention())
    stop = StopAtStepEnd(request)
    for callback in (journal, stop):
        trainer.add_callback(callback)
    with logging_redirect_tqdm(), name_silent_ranks():
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped:
        journal.end("preempted", step=trainer.state.global_step)
        _summarise(trainer, "preempted")
        logger.info("stopped by a signal; start the same command again to continue (exit code %d)", EXIT_PREEMPTED)
        return EXIT_PREEMPTED
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    journal.end("finished", step=trainer.state.global_step)
    _summarise(trainer, "finished")
    logger.info("done: %s (train loss %.4f)", training.output_dir, result.training_loss)
    return 0


def _summarise(trainer: V2PETrainer, status: Literal["finished", "preempted"]) -> None:
    summary = trainer.summarise(status)
    for line in summary.describe():
        logger.info("%s", line)
    if trainer.args.should_save:
        write_json(Path(str(trainer.args.output_dir), SUMMARY_FILE), summary.to_json(), default=to_json)


def _begin_attempt(training: Namespace) -> RunState:
    """State of this start: `finished` when there is nothing left to do, `running` otherwise.

    A start by the batch system after an interruption continues its own run: --overwrite_output_dir and
    --resume_from_checkpoint, which said where the first start begins, give way to this run's last checkpoint.

    Raises:
        RepeatedFailure: The run failed in the same step twice.
    """
    before = read_run_state(training.output_dir)
    if before is None:
        return RunState()
    starts_elsewhere = training.overwrite_output_dir or training.resume_from_checkpoint is not None
    if starts_elsewhere and not is_restart():
        return RunState(attempt=before.attempt + 1)
    if before.status == "finished" and training.max_steps <= before.step:
        if read_rank_env().is_main:
            logger.warning(
                "%s: this run finished at step %d, nothing is left to do; to train again choose another --output_dir "
                "or pass --overwrite_output_dir True",
                training.output_dir,
                before.step,
            )
        return before
    if starts_elsewhere and before.checkpoint is not None:
        training.resume_from_checkpoint = str(Path(training.output_dir, before.checkpoint))
    return before.next_attempt()


def _prepare_for_grid(model: InternVLChatModel, args: ModelArguments) -> Grid:
    """The process grid; the model is told how to work over it, and in which portions."""
    llm = model.config.llm_config
    grid = build_grid(
        chunk_num=args.chunk_num,
        ulysses_degree=ulysses_degree_of(args),
        num_heads=llm.num_attention_heads,
        num_kv_heads=llm.num_key_value_heads,
    )
    if shares_rows(args):
        register_shared_attention(grid, kernel=args.attn_kernel)
        llm._attn_implementation = SHARED_ATTENTION
    model.vit_batch_size = args.vit_batch_size
    if args.mlp_tile_tokens is not None:
        tile_mlps(model.language_model, num_tokens=args.mlp_tile_tokens)
    return grid


def build_encoder(
    args: DataTrainingArguments, *, tokenizer: PreTrainedTokenizerBase, num_image_token: int
) -> SampleEncoder:
    """What makes documents of records under these flags."""
    return SampleEncoder(
        text=TextOptions(
            tokenizer=tokenizer,
            conversation_name=args.conv_style,
            num_image_token=num_image_token,
            max_seq_length=args.max_seq_length,
            truncation=args.truncation,
        ),
        tiles=TileOptions(
            image_size=args.force_image_size,
            dynamic_image_size=args.dynamic_image_size,
            dynamic_max_patch=args.dynamic_max_patch,
            use_thumbnail=args.use_thumbnail,
            min_dynamic_patch=args.min_dynamic_patch,
            max_dynamic_patch=args.max_dynamic_patch,
            normalize_type=args.normalize_type,
            pad2square=args.pad2square,
        ),
        frames=FrameOptions(
            min_num_frame=args.min_num_frame,
            max_num_frame=args.max_num_frame,
            frame_sampling=args.frame_sampling,
        ),
        strides=StrideOptions(
            rope_pos_id_version=args.rope_pos_id_version,
            rope_pos_id_stride=args.rope_pos_id_stride,
            random_strides=args.rope_pos_id_random_strides,
            rope_pos_id_rnd_scope=args.rope_pos_id_rnd_scope,
        ),
    )


def _build_loader(
    args: DataTrainingArguments,
    training: Namespace,
    *,
    tokenizer: PreTrainedTokenizerBase,
    num_image_token: int,
    grid: Grid,
) -> TrainLoader:
    """The rows of this rank: streams r*A .. r*A + A - 1 of the R * A streams (A accumulation steps, R groups)."""
    encoder = build_encoder(args, tokenizer=tokenizer, num_image_token=num_image_token)
    limits = PackingLimits(args.max_packed_tokens, args.num_images_expected, args.max_buffer_size)
    streams_per_rank = training.gradient_accumulation_steps
    return build_train_loader(
        load_meta(str(args.meta_path), data_root=args.data_root),
        encoder,
        num_streams=grid.data_size * streams_per_rank,
        first_stream=grid.data_rank * streams_per_rank,
        streams_per_rank=streams_per_rank,
        share=TileShare(grid.group_rank, grid.group_size),
        seed=training.seed if training.data_seed is None else training.data_seed,
        packing=limits if args.use_packed_ds else None,
        packing_policy=args.packing_policy,
        documents_per_row=training.per_device_train_batch_size,
        num_workers=training.dataloader_num_workers,
        skipped_path=training.skipped_path or Path(training.output_dir, "skipped.jsonl"),
        max_skipped=args.max_skipped,
        data_order=args.data_order,
        use_data_resampling=args.use_data_resampling,
    )


def _start_logging(output_dir: str, env: RankEnv) -> None:
    """Rank 0 logs to the terminal and to training_log.txt; the others only warn. One bar, that of the steps."""
    disable_progress_bar()
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if env.is_main:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(output_dir, "training_log.txt"), encoding="utf-8"))
    logging.basicConfig(
        level=logging.INFO if env.is_main else logging.WARNING,
        format=f"%(asctime)s [{env.rank}] %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )


@record  # torchrun shows the first rank's error at the end, behind what the others said about it
def main() -> None:
    """Command line.

    Exit code 0 on success, 2 with one clear line for an error that the user can correct, 85 when a signal stopped the
    run behind a checkpoint, 86 when it failed in the same step twice.
    """
    try:
        code = run_training(sys.argv[1:])
    except InternVLError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_FAILED_TWICE if isinstance(error, RepeatedFailure) else 2)
    finish_distributed(code)


if __name__ == "__main__":
    main()

"""A training run, from its flags to a checkpoint that loads.

    flags -> checks -> state of earlier starts -> process group -> model, rows -> V2PETrainer -> output_dir

internvl_chat_finetune.py is the entry; shell/launch.sh starts it on one machine or under slurm.
"""

import logging
import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils.logging import disable_progress_bar

from internvl.atomic import write_atomically, write_json
from internvl.data.cursor import RESTART_HINT
from internvl.data.encode import SampleEncoder, TextOptions
from internvl.data.loader import TrainLoader, build_train_loader
from internvl.data.meta import load_meta
from internvl.data.packing import PackingLimits
from internvl.data.plan import RankShare, RowOptions, TileShare
from internvl.data.strides import StrideOptions
from internvl.data.visuals import FrameOptions, TileOptions
from internvl.errors import CheckpointError, DataError
from internvl.model.loading import read_chat_config
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.grid import Grid, build_grid
from internvl.parallel.launch import RankEnv, init_distributed, is_restart, own_folder_together, read_rank_env
from internvl.parallel.rank_watchdog import name_missing_ranks
from internvl.parallel.shared_row import SHARED_ATTENTION, SharedRow, register_shared_attention
from internvl.train.arguments import (
    Arguments,
    DataTrainingArguments,
    ModelArguments,
    build_training_arguments,
    has_cuda,
    parse_arguments,
    shares_rows,
    take_flags,
    ulysses_degree_of,
    write_config,
)
from internvl.train.checkpoint.contents import POSITION_FILE, TOTALS_FILE, read_position
from internvl.train.checkpoint.pickles import check_pickles
from internvl.train.checkpoint.resume import find_resume_checkpoint
from internvl.train.checkpoint.writing import CheckpointWriter
from internvl.train.memory_savings import KeepAttention, keep_freed_memory, tile_mlps
from internvl.train.model_loading import (
    count_visual_tokens,
    load_training_model,
    load_training_tokenizer,
    settle_flags,
)
from internvl.train.requirements import check_requirements
from internvl.train.run.counts import RunTotals
from internvl.train.run.preemption import (
    EXIT_PREEMPTED,
    StopAtStepEnd,
    StopRequest,
    listen_for_stop,
    write_errors_once,
)
from internvl.train.run.record import (
    CONFIG_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    Ending,
    describe_run,
    fingerprint_data,
    name_device,
    to_json,
    warn_of_changed_data,
)
from internvl.train.run.state import RunJournal, RunState, read_run_state
from internvl.train.run.utilisation import Workload, find_peak_tflops
from internvl.train.run.window import Window
from internvl.train.state_files import WRONG_CONTENT
from internvl.train.step_loss import LossOptions
from internvl.train.trainable import select_trainable
from internvl.train.trainer import V2PETrainer
from internvl.train.validation import validate_arguments

logger = logging.getLogger(__name__)


def run_training(argv: Sequence[str]) -> int:
    """Train as the flags say, and leave a loadable checkpoint in `--output_dir`.

    Returns:
        Exit code: 0, also where the run had finished before; `EXIT_PREEMPTED` when a signal stopped it.

    Raises:
        InternVLError: Wrong flags, data or checkpoint; before anything is loaded where that is possible.
    """
    with listen_for_stop() as request:
        # Before the process group: a run that has nothing left to do, or must not start, should cost seconds.
        with write_errors_once(request):
            arguments = parse_arguments(argv)
            validate_arguments(*arguments)
            check_requirements(*arguments)
            settle_flags(arguments.data, read_chat_config(str(arguments.model.model_name_or_path)))
            training = arguments.training
            state = _begin_attempt(training)
            if state.status == "finished":
                return 0
            checkpoint = find_resume_checkpoint(
                training.output_dir, overwrite=training.overwrite_output_dir, wanted=training.resume_from_checkpoint
            )
        state = replace(state, epochs=None if training.max_steps > 0 else training.num_train_epochs)
        if checkpoint is not None and read_rank_env().is_main:
            check_pickles(Path(checkpoint))  # before the process group, in which the other ranks wait for this one
        env = _join_process_group(training)
        with own_folder_together(Path(training.output_dir), "training"):
            _start_logging(training.output_dir, env)
            if checkpoint is not None:
                logger.info("continuing from %s", checkpoint)
            with RunJournal(training.output_dir, state, writes="main" if env.is_main else "never") as journal:
                if env.is_main:
                    _record_run(arguments, env=env, checkpoint=checkpoint, attempt=state.attempt)
                return _train(arguments, checkpoint=checkpoint, journal=journal, request=request)


def _join_process_group(training: Namespace) -> RankEnv:
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
    return env


def _record_run(arguments: Arguments, *, env: RankEnv, checkpoint: str | None, attempt: int) -> None:
    """Write run.json; say what changed in the data since the start that wrote the checkpoint."""
    meta_path, training = str(arguments.data.meta_path), arguments.training
    data = fingerprint_data(meta_path, load_meta(meta_path, data_root=arguments.data.data_root))
    if checkpoint is not None:
        warn_of_changed_data(Path(checkpoint).parent, data)
    device = name_device(use_cpu=training.use_cpu)
    run = describe_run(arguments._asdict(), env=env, data=data, device=device, attempt=attempt)
    write_json(Path(training.output_dir, RUN_FILE), run, default=to_json)
    write_atomically(Path(training.output_dir, CONFIG_FILE), write_config(arguments))


def _train(arguments: Arguments, *, checkpoint: str | None, journal: RunJournal, request: StopRequest) -> int:
    """Train, resumed where there is a checkpoint, and save what came out."""
    with write_errors_once(request):
        trainer = _build_trainer(arguments, checkpoint)
    stop = StopAtStepEnd(request)
    for callback in (journal, stop):
        trainer.add_callback(callback)
    trainer.writer.note_published = journal.note_checkpoint
    with logging_redirect_tqdm(), name_missing_ranks():
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped:
        _end(trainer, journal, "preempted")
        logger.info("stopped by a signal; start the same command again to continue (exit code %d)", EXIT_PREEMPTED)
        return EXIT_PREEMPTED
    with write_errors_once(request):
        check_trained(trainer)
    trainer.save_model()
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    _end(trainer, journal, "finished")
    skipped = trainer.window.num_skipped
    logger.log(
        logging.WARNING if skipped else logging.INFO,
        "done: %s (train loss %.4f%s)",
        trainer.args.output_dir,
        result.metrics["train_loss"],
        f"; {skipped} documents could not be used, see skipped.jsonl" if skipped else "",
    )
    return 0


def check_trained(trainer: V2PETrainer) -> None:
    """A run that has trained on nothing has failed, whatever it saved."""
    trainer.collect_counts()
    totals = trainer.window.totals
    if not totals.counts["targets"]:
        raise DataError(
            f"nothing was trained on in {trainer.state.global_step} steps: no document had a token to learn "
            f"({trainer.window.num_skipped} could not be used, {totals.bad_steps} steps were left out); see "
            f"skipped.jsonl and bad_steps.jsonl in {trainer.args.output_dir}, and run internvl.tools.check_data"
        )


def _build_trainer(arguments: Arguments, checkpoint: str | None) -> V2PETrainer:
    """Load model and data, and put them together."""
    model_args, data_args, training = arguments
    set_seed(training.seed)  # before the model: new embeddings and adapters are drawn at random
    tokenizer, num_added_tokens = load_training_tokenizer(model_args, data_args.max_seq_length)
    config = read_chat_config(str(model_args.model_name_or_path))
    # Before the model, since a template may not fit the tokenizer.
    num_image_token = count_visual_tokens(data_args, config)
    encoder = build_encoder(data_args, tokenizer=tokenizer, num_image_token=num_image_token)
    model = load_training_model(
        model_args,
        data_args,
        tokenizer=tokenizer,
        num_added_tokens=num_added_tokens,
        # DeepSpeed keeps float32 master weights itself; without it weights stay float32 and autocast rounds.
        dtype=torch.bfloat16 if training.bf16 and training.deepspeed else torch.float32,
    )
    select_trainable(model, model_args)
    grid = _prepare_for_grid(model, model_args)
    loader = _build_loader(data_args, training, encoder=encoder, grid=grid)
    if training.max_steps <= 0:  # the loader has no end, so epochs become a number of steps
        training.max_steps = math.ceil(training.num_train_epochs * loader.rows_per_epoch())
    window = Window(
        [file.spec.name for file in loader.plan.files],
        max_row_tokens=data_args.max_packed_tokens if data_args.use_packed_ds else None,
        workload=Workload(
            model.config,
            model_args,
            peak_tflops=training.peak_tflops or find_peak_tflops(name_device(use_cpu=training.use_cpu)),
        ),
    )
    if checkpoint is not None:
        window.totals = RunTotals.read(Path(checkpoint, TOTALS_FILE), window.sources)
        if training.ignore_data_skip:
            logger.warning("--ignore_data_skip True: the data starts from its beginning")
        else:
            resume_data(loader, Path(checkpoint))
    args = build_training_arguments(
        training, grad_checkpoint=model_args.grad_checkpoint, offload_activations=model_args.offload_activations
    )
    trainer = V2PETrainer(
        model,
        args,
        loader=loader,
        writer=CheckpointWriter(
            Path(str(args.output_dir)),
            is_main=args.should_save,
            is_node_main=read_rank_env().local_rank == 0,
            num_ranks=args.world_size,
            keep=args.save_total_limit,
            tokenizer=tokenizer,
            companions=Path(str(model_args.model_name_or_path)).glob("generation_config.json"),
            in_background=training.save_in_background,
        ),
        window=window,
        loss=LossOptions(data_args.loss_reduction, data_args.loss_reduction_all_gather, data_args.loss_kernel),
        shared_row=SharedRow(grid) if shares_rows(model_args) else None,
        host_group=grid.host_group,
    )
    if model_args.keep_attention:
        trainer.add_callback(KeepAttention())
    return trainer


def resume_data(loader: TrainLoader, checkpoint: Path) -> None:
    """Set the loader to where the data of a checkpoint goes on."""
    state = read_position(checkpoint)
    try:
        loader.load_state_dict(state)
    except WRONG_CONTENT as error:
        raise CheckpointError(
            f"{checkpoint / POSITION_FILE} cannot be used ({error!r}); resume from another checkpoint, {RESTART_HINT}"
        ) from error


def _end(trainer: V2PETrainer, journal: RunJournal, status: Ending) -> None:
    """Note how the run ended, and write summary.json."""
    folder, state = Path(str(trainer.args.output_dir)), trainer.state
    journal.end(status, step=state.global_step)
    trainer.collect_counts()
    summary = trainer.window.summarise(status, step=state.global_step, log_history=state.log_history, folder=folder)
    for line in summary.describe():
        logger.info("%s", line)
    if trainer.args.should_save:
        write_json(folder / SUMMARY_FILE, summary.to_json(), default=to_json)


def _begin_attempt(training: Namespace) -> RunState:
    """State of this start: `finished` when there is nothing left to do, `running` otherwise.

    A start by the batch system after an interruption continues its own run: --overwrite_output_dir and
    --resume_from_checkpoint, which said where the first start begins, give way to this run's last checkpoint.
    """
    before = read_run_state(training.output_dir)
    if before is None:
        return RunState()
    starts_elsewhere = training.overwrite_output_dir or training.resume_from_checkpoint is not None
    if starts_elsewhere and not is_restart():
        return RunState(attempt=before.attempt + 1)
    if before.has_reached(max_steps=training.max_steps, epochs=training.num_train_epochs):
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
    """Build the process grid, and set up the model for it."""
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
    """The encoder that turns records into documents under these flags."""
    return SampleEncoder(
        text=take_flags(
            TextOptions,
            args,
            tokenizer=tokenizer,
            conversation_name=args.conv_style,
            num_image_token=num_image_token,
        ),
        tiles=take_flags(TileOptions, args, image_size=args.force_image_size),
        frames=take_flags(FrameOptions, args),
        strides=take_flags(StrideOptions, args, random_strides=args.rope_pos_id_random_strides),
    )


def _build_loader(
    args: DataTrainingArguments, training: Namespace, *, encoder: SampleEncoder, grid: Grid
) -> TrainLoader:
    """The rows of this rank: streams r*A .. r*A + A - 1 of the R * A streams (A accumulation steps, R groups)."""
    limits = PackingLimits(args.max_packed_tokens, args.num_images_expected, args.max_buffer_size)
    num_own = training.gradient_accumulation_steps
    rows = take_flags(
        RowOptions,
        args,
        num_streams=grid.data_size * num_own,
        seed=training.seed if training.data_seed is None else training.data_seed,
        packing=limits if args.use_packed_ds else None,
        documents_per_row=training.per_device_train_batch_size,
    )
    first = grid.data_rank * num_own
    return build_train_loader(
        load_meta(str(args.meta_path), data_root=args.data_root),
        encoder,
        rows,
        share=RankShare(range(first, first + num_own), TileShare(grid.group_rank, grid.group_size)),
        num_workers=training.dataloader_num_workers,
        pin_memory=training.dataloader_pin_memory and has_cuda() and not training.use_cpu,
        skipped_path=training.skipped_path or Path(training.output_dir, "skipped.jsonl"),
        max_skipped=args.max_skipped,
    )


def _start_logging(output_dir: str, env: RankEnv) -> None:
    """Rank 0 logs to the terminal and to training_log.txt, other ranks only warn. The only bar is that of the steps."""
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

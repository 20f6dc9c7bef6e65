"""`python -m eval.run`: evaluate a checkpoint on tasks; alone, under torchrun, or as slurm tasks.

    options -> jobs (checked) -> predictions, appended as they come -> scores.json, plots -> table

Processes share nothing but the result folder; they meet at barriers and rank 0 merges, scores and reports. With
--ring_attn groups of processes answer a question together (internvl/infer/context_parallel.py); the first of a group
writes. With --gpus_per_task alone a process spreads the layers of its model over so many GPUs.
"""

import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist

from eval.answering import load_answerer
from eval.core.plots import write_task_plots
from eval.core.report import format_table, tabulate
from eval.core.runner import Job, Workers, run_jobs
from eval.core.sample import Prediction
from eval.core.scoring import write_scores
from eval.options import RunOptions, parse_options
from eval.planning import choose_folder, choose_stride, plan_jobs
from eval.summary import write_summary
from internvl.errors import ConfigError, InternVLError
from internvl.infer.checkpoint import check_checkpoint
from internvl.infer.context_parallel import ContextParallel, build_context_parallel
from internvl.parallel.launch import RankEnv, finish_distributed, init_distributed, read_rank_env

BARRIER_TIMEOUT_S = 2 * 24 * 3600.0  # a rank may have to wait for another one's share


def run(options: RunOptions, env: RankEnv) -> None:
    """Plan, answer, score, report.

    Raises:
        InternVLError: See `eval.planning` and `eval.core.runner`.
    """
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.dtype or ("bfloat16" if device == "cuda" else "float32")
    stride = choose_stride(
        options.rope_pos_id_version, options.rope_pos_id_stride, check_checkpoint(options.checkpoint)
    )
    jobs = plan_jobs(options, stride=stride, dtype=dtype)
    layer_devices = choose_layer_devices(options, env, device)
    workers, parallel = _join_workers(env, options, device)
    make_answer = partial(
        load_answerer,
        options.checkpoint,
        dtype=dtype,
        device=_place(device, env),
        rope_pos_id_version=options.rope_pos_id_version,
        rope_pos_id_stride=stride,
        rope_scaling=options.rope_scaling,
        max_num=options.max_num,
        cache_mib=options.cache_mib,
        prefill_chunk_size=options.prefill_chunk_size,
        kv_cache=options.kv_cache,
        context_parallel=parallel,
        layer_devices=layer_devices,
    )
    predictions = run_jobs(jobs, make_answer, workers=workers, overwrite=options.overwrite)
    if predictions is not None:
        _report(jobs, predictions, options, stride)


def _place(device: str, env: RankEnv) -> str:
    """The device of this process; on CPU, processes of a machine share its cores."""
    if device == "cuda":
        return f"cuda:{env.local_rank % max(1, torch.cuda.device_count())}"
    if env.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // env.local_world_size))
    return device


def choose_layer_devices(options: RunOptions, env: RankEnv, device: str) -> list[str]:
    """GPUs among which this process splits the layers of its model; none: it fits on one.

    Raises:
        ConfigError: There are no GPUs, or fewer than the processes of this machine ask for.
    """
    num_devices = options.gpus_per_task or 1
    if options.ring_attn or num_devices == 1:
        return []
    num_gpus = torch.cuda.device_count() if device == "cuda" else 0
    if env.local_world_size * num_devices > num_gpus:
        raise ConfigError(
            f"--gpus_per_task {num_devices} for {env.local_world_size} processes needs "
            f"{env.local_world_size * num_devices} GPUs, this machine has {num_gpus}; start fewer processes, or add "
            "--ring_attn, which spreads a prompt over processes instead of layers over GPUs"
        )
    return [f"cuda:{env.local_rank * num_devices + index}" for index in range(num_devices)]


def _join_workers(env: RankEnv, options: RunOptions, device: str) -> tuple[Workers, ContextParallel | None]:
    """The workers of the run, and the processes that answer together with this one."""
    is_cuda_group = options.ring_attn and device == "cuda"
    init_distributed(env, device="cuda" if is_cuda_group else "cpu", timeout_s=BARRIER_TIMEOUT_S)
    barrier = dist.barrier if env.world_size > 1 else Workers().barrier
    size = (options.gpus_per_task or env.world_size) if options.ring_attn else 1
    parallel = build_context_parallel(size) if options.ring_attn else None
    is_writer = parallel is None or parallel.is_first
    return Workers(env.rank // size, env.world_size // size, barrier, is_writer), parallel


def _report(
    jobs: Sequence[Job], predictions: Sequence[Sequence[Prediction]], options: RunOptions, stride: float | None
) -> None:
    results = []
    for job, answered in zip(jobs, predictions, strict=True):
        store = job.store
        scores = write_scores(
            store.folder,
            job.task,
            answered,
            settings=store.settings,
            info=store.info,
            protocol=options.protocol,
            length_edges=options.length_bins,
        )
        write_task_plots(store.folder, scores)
        results.append(scores)
    write_summary(choose_folder(options, stride), results)
    print(format_table(tabulate(results)))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (2 for an error of the user's)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        options, env = parse_options(argv), read_rank_env()
        if not env.is_main:
            logging.getLogger().setLevel(logging.ERROR)
        run(options, env)
    except InternVLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    exit_code = main()
    if exit_code == 0:
        finish_distributed()
    sys.exit(exit_code)

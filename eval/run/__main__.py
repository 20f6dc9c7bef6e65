"""`python -m eval.run`: evaluate a checkpoint on tasks; alone, under torchrun, or as slurm tasks.

    options -> jobs (checked) -> predictions, appended as they come -> verdicts of a judge, where a task needs one
            -> scores.json, plots -> table

Processes draw questions from one queue and write their own files; rank 0 plans, merges, scores and reports.
With --ring_attn groups of processes answer a question together (see internvl/infer/context_parallel.py).
With --gpus_per_task alone each process spreads the layers of its model over that many GPUs.

Exit codes: 0 done; 2 the run could not start or go on (what was answered is kept); 3 done, with scores, but more
questions of a task failed than --max_failed allows. torchrun turns any but 0 into 1.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from eval.check_data import describe_skipped, skip_missing
from eval.core.sample import Prediction
from eval.core.scoring import write_scores
from eval.report.overview import format_results
from eval.report.plots import write_task_plots
from eval.report.summary import write_summary
from eval.run.answering import load_answerer
from eval.run.endpoint import Endpoint, EndpointAnswerer
from eval.run.judging import judge_predictions
from eval.run.options import RunOptions, parse_options
from eval.run.planning import choose_folder, choose_positions, plan_jobs
from eval.run.queue import Answer, Job, Workers, run_jobs
from internvl.command import command
from internvl.errors import ConfigError
from internvl.infer.checkpoint import check_checkpoint
from internvl.infer.context_parallel import ContextParallel, build_context_parallel
from internvl.infer.settings import InferenceSettings
from internvl.parallel.launch import RankEnv, finish_distributed, init_distributed, own_folder_together, read_rank_env

BARRIER_TIMEOUT_S = 2 * 24 * 3600.0  # a rank may have to wait for another one's long question
EXIT_TOO_MANY_FAILED = 3
NUM_REASONS = 3  # that are printed per task
Value = TypeVar("Value")


def run(options: RunOptions, env: RankEnv) -> int:
    """Plan, answer, score, report. Returns this process's exit code: 0, or `EXIT_TOO_MANY_FAILED`.

    Raises InternVLError as `eval.run.planning` and `eval.run.queue` do.
    """
    endpoint = open_endpoint(options)
    if endpoint is None:
        assert options.checkpoint is not None
        settings = choose_positions(options.settings, check_checkpoint(options.checkpoint)).on_device(env)
        options = replace(options, settings=settings)
    options.judging.check()
    options, skipped = skip_missing(options)
    jobs = plan_jobs(options)
    if endpoint is None:
        workers, make_answer, batch_size = *join_model(options, env), options.batch_size
    else:
        workers, _ = join_workers(env, options)
        make_answer, batch_size = partial(EndpointAnswerer, endpoint), options.endpoint_requests
    with own_folder_together(choose_folder(options), "eval.run"):
        predictions = run_jobs(
            jobs,
            make_answer,
            workers=workers,
            overwrite=options.overwrite,
            batch_size=batch_size,
            retry_failed=options.retry_failed,
        )
        if predictions is None:
            return 0
        _report(jobs, predictions, options)
    if skipped:
        print(describe_skipped(skipped))
    return report_failures(jobs, predictions, max_failed=options.max_failed)


def open_endpoint(options: RunOptions) -> Endpoint | None:
    """The server that is asked, which is there and has the model; None: a checkpoint is asked."""
    if options.endpoint is None:
        return None
    endpoint = Endpoint(options.endpoint, str(options.model), options.settings, options.sampling)
    endpoint.server.check()
    return endpoint


def join_model(options: RunOptions, env: RankEnv) -> tuple[Workers, Callable[[], Answer]]:
    """The workers of the run, and what loads the checkpoint for this one."""
    settings, layer_devices = options.settings, choose_layer_devices(options, env)
    if settings.device != "cpu":
        torch.cuda.set_device(layer_devices[0] if layer_devices else settings.device)  # or all open a context on GPU 0
    workers, parallel = join_workers(env, options)
    _share_cores(settings, env)
    assert options.checkpoint is not None
    return workers, partial(
        load_answerer,
        options.checkpoint,
        settings,
        sampling=options.sampling,
        context_parallel=parallel,
        layer_devices=layer_devices,
    )


def _share_cores(settings: InferenceSettings, env: RankEnv) -> None:
    """On CPU, processes of one machine share its cores."""
    if settings.device == "cpu" and env.local_world_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // env.local_world_size))


def choose_layer_devices(options: RunOptions, env: RankEnv) -> list[str]:
    """GPUs among which this process splits the layers of its model; none when it fits on one.

    Raises ConfigError if there are no GPUs, or fewer than the processes of this machine ask for.
    """
    num_devices = options.gpus_per_task or 1
    if options.ring_attn or num_devices == 1:
        return []
    num_gpus = torch.cuda.device_count() if options.settings.device != "cpu" else 0
    if env.local_world_size * num_devices > num_gpus:
        raise ConfigError(
            f"--gpus_per_task {num_devices} for {env.local_world_size} processes needs "
            f"{env.local_world_size * num_devices} GPUs, this machine has {num_gpus}; start fewer processes, or add "
            "--ring_attn, which spreads a prompt over processes instead of layers over GPUs"
        )
    return [f"cuda:{env.local_rank * num_devices + index}" for index in range(num_devices)]


def join_workers(env: RankEnv, options: RunOptions) -> tuple[Workers, ContextParallel | None]:
    """The workers of the run, and the processes that answer together with this one."""
    is_cuda_group = options.ring_attn and options.settings.device != "cpu"
    init_distributed(env, device="cuda" if is_cuda_group else "cpu", timeout_s=BARRIER_TIMEOUT_S)
    size = (options.gpus_per_task or env.world_size) if options.ring_attn else 1
    parallel = build_context_parallel(size) if options.ring_attn else None
    if env.world_size == 1:
        return Workers(), parallel
    draw = _open_queue(env)
    if parallel is not None:
        draw = partial(_draw_together, parallel, draw)
    member = 0 if parallel is None else parallel.rank
    workers = Workers(
        env.rank // size, env.world_size // size, barrier=dist.barrier, member=member, share=_share, draw=draw
    )
    return workers, parallel


def _share(value: Value) -> Value:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _open_queue(env: RankEnv) -> Callable[[], int]:
    """The next number of 0, 1, 2, ..., each for one rank only: a counter that rank 0 serves. Collective."""
    host, timeout = os.environ["MASTER_ADDR"], timedelta(seconds=BARRIER_TIMEOUT_S)
    server = dist.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False) if env.is_main else None
    port = _share(None if server is None else server.port)
    store = server or dist.TCPStore(host, int(port or 0), is_master=False, timeout=timeout)
    return lambda: store.add("drawn", 1) - 1


def _draw_together(parallel: ContextParallel, draw: Callable[[], int]) -> int:
    """The first process of a group draws for all of them."""
    number = parallel.share(draw() if parallel.is_first else None)
    assert number is not None
    return number


def _report(jobs: Sequence[Job], predictions: Sequence[Sequence[Prediction]], options: RunOptions) -> None:
    results = []
    for job, answered in zip(jobs, predictions, strict=True):
        store = job.store
        judged, judge = judge_predictions(job.task, answered, store.folder, options.judging)
        scores = write_scores(
            store.folder,
            job.task,
            judged,
            settings=store.settings,
            info=store.info,
            protocol=options.protocol,
            length_edges=options.length_bins,
            judge=judge,
        )
        write_task_plots(store.folder, scores)
        results.append(scores)
    write_summary(choose_folder(options), results)
    print(format_results(results))


def report_failures(jobs: Sequence[Job], predictions: Sequence[Sequence[Prediction]], *, max_failed: float) -> int:
    """Print how many questions failed, and why; the exit code."""
    exit_code = 0
    for job, answered in zip(jobs, predictions, strict=True):
        reasons = Counter(prediction.failure for prediction in answered if prediction.failure is not None)
        if not reasons:
            continue
        share = reasons.total() / len(answered)
        print(f"{job.task.name}: {reasons.total()} of {len(answered)} questions FAILED and count as wrong:")
        for reason, times in reasons.most_common(NUM_REASONS):
            print(f"  {times} x {reason}")
        if len(reasons) > NUM_REASONS:
            print(f"  ... and {len(reasons) - NUM_REASONS} other reasons, see {job.store.merged_path}")
        if share > max_failed:
            print(f"  this is more than --max_failed {max_failed:g}: the score says little about the model")
            exit_code = EXIT_TOO_MANY_FAILED
        print("  remove the causes and start the same command with --retry_failed to ask them again")
    return exit_code


@command(go_on="start the same command again to continue; all answers so far are kept")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, see the top of this file."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    options, env = parse_options(argv), read_rank_env()
    if not env.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    return run(options, env)


if __name__ == "__main__":
    exit_code = main()
    if exit_code in (0, EXIT_TOO_MANY_FAILED):
        finish_distributed(exit_code)
    sys.exit(exit_code)

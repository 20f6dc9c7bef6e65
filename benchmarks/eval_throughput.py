"""Evaluation throughput on a tiny model: shared pictures, shared contexts, batches, and one queue for all ranks.

    python benchmarks/eval_throughput.py [--contexts 8 --videos 8 --ranks 2] [--lmms_eval PYTHON]

First table: questions per second of tasks whose questions share pictures, in one process, in the published forms of
MM-NIAH (contexts of photographs and text that three tasks ask about) and MVBench (videos that five tasks ask about).
The third line asks one question about each photograph, so that nothing is shared.
`plain` answers one question after the other and keeps nothing (--cache_mib 0), `cached` is the default of eval.run, and
`batched` adds --batch_size 8. Loading the model is not counted; each variant answers one question before its clock
starts. The clock is the CPU time of the process, because other programs share the machine. The variants of a line take
turns, and the best of `--rounds` counts.

Second table: when ranks (processes on one machine) run out of questions on a skewed mix of prompt lengths, tenfold and
more, counted from the moment when all of them have loaded their model.

With `--lmms_eval` the first table also has lmms-eval's own loop: the same checkpoint, questions and answer limits,
through the bridge (eval/bridges/lmms_eval.py). PYTHON is the interpreter of an environment with this package and
lmms-eval:

    python -m venv ENV && ENV/bin/pip install -e . "lmms-eval==0.7.3"

Answers end after 8 tokens, because a random model does not stop by itself.
"""

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from eval.run.__main__ import join_workers
from eval.run.answering import load_answerer
from eval.run.options import RunOptions
from eval.run.planning import plan_jobs
from eval.run.queue import Job, run_jobs
from internvl.data.video import VIDEO_PLACEHOLDER
from internvl.infer.settings import InferenceSettings
from internvl.parallel.launch import finish_distributed, init_distributed, read_rank_env
from internvl.tools.make_tiny import TinySpec, make_checkpoint

NUM_NEW_TOKENS = 8
NIAH_KINDS = ("retrieval-text", "retrieval-image", "reasoning-image")
CLEVRER_TASKS = (
    "object_existence", "moving_direction", "moving_count", "moving_attribute", "counterfactual_inference",
)  # fmt: skip
TEXT = "The old harbour lies behind a row of low houses and nobody knows who built its wall"


# -------------------------------------------------------------------------------------------------------- data sets


def write_photograph(path: Path, seed: int, size: tuple[int, int] = (640, 480)) -> None:
    """A JPEG of smooth colours and some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 12, (size[1], size[0], 3))
    Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(path, quality=90)


def write_video(path: Path, seed: int, num_frames: int = 128, size: tuple[int, int] = (480, 320)) -> None:
    """An mp4 of a moving pattern, 25 frames per second."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_text(rng: random.Random, num_words: int) -> str:
    """Words in random order."""
    return " ".join(rng.choices(TEXT.split(), k=num_words))


def write_niah(root: Path, contexts: Sequence[tuple[int, int]], kinds: Sequence[str] = NIAH_KINDS) -> str:
    """MM-NIAH in its published form, (pictures, words between two of them) per context; the names of its tasks."""
    folder = root / "MM-NIAH" / "mm_niah_test"
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True)
    rng = random.Random(0)
    records: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for number, (num_images, num_words) in enumerate(contexts):
        names = [f"{number}-{index}.jpg" for index in range(num_images)]
        for index, name in enumerate(names):
            write_photograph(folder / "images" / name, 1000 * number + index)
        context = write_text(rng, num_words)
        context += "".join(f" <image> {write_text(rng, num_words)}" for _ in names)
        length = (num_images + 1) * num_words * 2 + 5 * 4 * num_images
        for kind in kinds:
            meta = {"placed_depth": 0.5, "context_length": length, "choices": None, "choices_image_path": None}
            question = f"What does the {kind} say about {write_text(rng, 3)}?"
            record = {"id": number, "images_list": names, "context": context, "question": question, "answer": "wall"}
            records[kind].append({**record, "meta": meta})
    for kind, lines in records.items():
        (folder / "annotations" / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ",".join(f"mm_niah/{kind}-test" for kind in kinds)


def write_mvbench(root: Path, num_videos: int) -> str:
    """Tasks of MVBench that ask about one folder of videos, in its published form; their names."""
    videos, questions = root / "MVBench" / "video" / "clevrer" / "video_validation", root / "MVBench" / "json"
    videos.mkdir(parents=True)
    questions.mkdir()
    for number in range(num_videos):
        write_video(videos / f"{number}.mp4", number)
    for task in CLEVRER_TASKS:
        records = [
            {
                "video": f"{number}.mp4",
                "question": f"Which is true of {task.replace('_', ' ')}?",
                "candidates": ["the cube", "the ball", "nothing"],
                "answer": "the ball",
            }
            for number in range(num_videos)
        ]
        (questions / f"{task}.json").write_text(json.dumps(records))
    return ",".join(f"mvbench/{task}" for task in CLEVRER_TASKS)


# ------------------------------------------------------------------------------------------------------- throughput

SETTINGS = InferenceSettings("v2pe_fix", 0.25, dtype="float32", device="cpu")
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"settings": replace(SETTINGS, cache_mib=0)},
    "cached": {},
    "batched": {"batch_size": 8},
}


def plan(options: RunOptions) -> list[Job]:
    """Jobs with short answers."""
    jobs = plan_jobs(options)
    return [replace(job, task=replace(job.task, max_new_tokens=NUM_NEW_TOKENS)) for job in jobs]


def load(options: RunOptions) -> Callable[..., Any]:
    """The loaded model, as the runner calls it."""
    return load_answerer(options.checkpoint, options.settings)


def measure_way(options: RunOptions) -> tuple[int, float]:
    """(questions, processor seconds) of a whole run."""
    jobs, answer = plan(options), load(options)
    answer(jobs[0].task, [replace(jobs[0].samples[0], images=(), videos=(), prompt="ready?")])
    start = time.process_time()
    run_jobs(jobs, lambda: answer, overwrite=True, batch_size=options.batch_size)
    return sum(len(job.samples) for job in jobs), time.process_time() - start


def measure_lmms_eval(options: RunOptions, python: Path) -> float:
    """Processor seconds of lmms-eval's loop over the same questions."""
    jobs = plan(options)
    records = [
        {
            # The bridge places videos itself.
            "prompt": sample.prompt.removeprefix(f"{VIDEO_PLACEHOLDER}\n"),
            "images": [str(image) for image in sample.images],
            "videos": [str(video.path) for video in sample.videos],
            "answer": "wall",
        }
        for job in jobs
        for sample in job.samples
    ]
    questions = options.data_root / "questions.jsonl"
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    task, settings = jobs[0].task, options.settings
    bridge = {
        "max_new_tokens": NUM_NEW_TOKENS,
        "max_num": task.max_num,
        "num_frames": task.num_frames or 16,
        "rope_pos_id_version": settings.rope_pos_id_version,
        "rope_pos_id_stride": settings.rope_pos_id_stride,
        "dtype": settings.dtype,
        "device": settings.device,
    }
    script = Path(__file__).with_name("lmms_eval_loop.py")
    command = [str(python), str(script), str(options.checkpoint), str(questions), json.dumps(bridge)]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    count, seconds = json.loads(done.stdout.splitlines()[-1])
    assert count == len(records)
    return float(seconds)


def compare_ways(name: str, options: RunOptions, *, num_rounds: int, lmms_eval: Path | None) -> None:
    """Print a line of the first table."""
    best = dict.fromkeys(WAYS, float("inf"))
    count, theirs = 0, float("inf")
    for _ in range(num_rounds):
        for way, changes in WAYS.items():
            out = options.checkpoint.parent / "out" / name / way
            count, seconds = measure_way(replace(options, out=out, **changes))
            best[way] = min(best[way], seconds)
        if lmms_eval is not None:
            theirs = min(theirs, measure_lmms_eval(options, lmms_eval))
    rates = "".join(f" {count / best[way]:8.2f}" for way in WAYS)
    ratios = "".join(f" {best['plain'] / best[way]:8.1f}x" for way in list(WAYS)[1:])
    beside = "" if lmms_eval is None else f" {count / theirs:10.2f} {theirs / best['cached']:8.2f}x"
    print(f"{name:<10} {count:>9}{rates}{ratios}{beside}", flush=True)


# ----------------------------------------------------------------------------------------------------- finish times


def work(options: RunOptions, report: Path) -> None:
    """One rank: answer, and write down when it began and when it had nothing more to do."""
    env = read_rank_env()
    init_distributed(env, device="cpu")
    workers, _ = join_workers(env, options)
    answer = load(options)
    workers.barrier()
    begin = time.time()
    ends = [begin]

    def answer_and_note(*question: Any) -> Any:
        predictions = answer(*question)
        ends.append(time.time())
        return predictions

    run_jobs(plan(options), lambda: answer_and_note, workers=workers)
    (report / f"{env.rank}.json").write_text(json.dumps([begin, ends[-1], len(ends) - 1]))
    finish_distributed()


def measure_ranks(folder: Path, num_ranks: int) -> None:
    """Print the second table."""
    report = folder / "finish"
    report.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    command = [sys.executable, *launch, os.path.abspath(__file__), "--work", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = [json.loads((report / f"{rank}.json").read_text()) for rank in range(num_ranks)]
    begin = min(row[0] for row in rows)
    print(f"\n{'rank':>4} {'questions':>9} {'seconds':>8}")
    for rank, (_, end, count) in enumerate(rows):
        print(f"{rank:>4} {count:>9} {end - begin:8.1f}")
    times = [end - begin for _, end, _ in rows]
    print(f"finish times differ by {100 * (1 - min(times) / max(times)):.1f} % of the longest")


def main() -> None:
    """Make data sets and a checkpoint, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=8, help="of MM-NIAH's form, three questions each")
    parser.add_argument("--videos", type=int, default=8, help="of MVBench's form, five questions each")
    parser.add_argument("--skewed", type=int, default=60, help="questions of the second table")
    parser.add_argument("--rounds", type=int, default=2, help="runs of every way")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the second table")
    parser.add_argument("--photographs", type=int, default=24, help="of the third line, a question each")
    parser.add_argument("--lmms_eval", type=Path, metavar="PYTHON", help="compare with lmms-eval in this environment")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if args.work:
        folder = args.work
        skewed = RunOptions(
            "mm_niah/retrieval-text-test", folder / "tiny", replace(SETTINGS, cache_mib=0), data_root=folder / "skewed"
        )
        work(replace(skewed, out=folder / "out" / "skewed"), folder / "finish")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "tiny", TinySpec())
        niah = write_niah(folder / "niah", [(16 + 4 * (number % 4), 40) for number in range(args.contexts)])
        mvbench = write_mvbench(folder / "mvbench", args.videos)
        single = write_niah(folder / "single", [(1, 40)] * args.photographs, kinds=NIAH_KINDS[:1])
        titles = "".join(f" {way:>8}" for way in WAYS) + "".join(f" {way:>9}" for way in list(WAYS)[1:])
        beside = "" if args.lmms_eval is None else "  lmms-eval    cached"
        note = "times plain" + (", cached times lmms-eval" if beside else "")
        print(f"{'':10} {'questions':>9}{titles}{beside}   (questions per second; {note})")
        for title, tasks, root in (
            ("MM-NIAH", niah, "niah"), ("MVBench", mvbench, "mvbench"), ("single", single, "single"),
        ):  # fmt: skip
            options = RunOptions(tasks, folder / "tiny", SETTINGS, data_root=folder / root)
            compare_ways(title, options, num_rounds=args.rounds, lmms_eval=args.lmms_eval)
        rng = random.Random(0)
        lengths = [(1 + int(min(rng.paretovariate(1.0), 12.0)), 60) for _ in range(args.skewed)]
        write_niah(folder / "skewed", lengths, kinds=NIAH_KINDS[:1])
        measure_ranks(folder, args.ranks)


if __name__ == "__main__":
    main()

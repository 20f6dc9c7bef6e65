import heapq
import logging
import random
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from eval.core.predictions import PredictionStore
from eval.core.sample import Prediction, Sample
from eval.core.task import Task
from eval.run.queue import Job, LastAnswerError, Workers, check_jobs, list_open, plan_units, run_jobs
from internvl.errors import DataError, EvalError


def make_task(name="g/t"):
    return Task(
        name=name,
        version=1,
        source="here",
        annotation=Path("t.jsonl"),
        read_samples=lambda root: [],
        max_new_tokens=4,
        max_num=1,
        score_answer=lambda answer, response, protocol: float(answer == response),
    )


def make_samples(costs, prefix="s"):
    return tuple(Sample(f"{prefix}{i}", "?", (), i, {}, cost) for i, cost in enumerate(costs))


def make_job(folder, costs=(1, 5, 3, 2), name="g/t"):
    return Job(make_task(name), make_samples(costs), PredictionStore(folder / name, {"task": name}))


class Oracle:
    """Answers right, counts, and dies when told to."""

    def __init__(self, die_after=None):
        self.asked, self.batches, self.die_after = [], [], die_after

    def __call__(self, task, samples):
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        self.asked += [sample.id for sample in samples]
        self.batches.append([sample.id for sample in samples])
        return [Prediction(s.id, str(s.answer), s.answer, {}, 1, 0, 0.0, 0.0) for s in samples]


class Failing(Oracle):
    """Has no answer to some questions."""

    def __init__(self, *failing):
        super().__init__()
        self.failing = failing

    def __call__(self, task, samples):
        right = super().__call__(task, samples)
        return [
            Prediction.failed(s, "out of memory") if s.id in self.failing else p
            for s, p in zip(samples, right, strict=True)
        ]


class Ranks:
    """What threads need to play the processes of a run."""

    def __init__(self, size):
        self.size, self.barrier, self.numbers, self.value = size, threading.Barrier(size), count(), None
        self.lock = threading.Lock()

    def share(self, rank, value):
        if rank == 0:
            self.value = value
        self.barrier.wait()
        return self.value

    def draw(self):
        with self.lock:
            return next(self.numbers)

    def workers(self, rank):
        return Workers(
            rank, self.size, barrier=self.barrier.wait, share=lambda value: self.share(rank, value), draw=self.draw
        )


def run_ranks(jobs, world_size, oracles, **options):
    ranks = Ranks(world_size)
    results = [None] * world_size

    def work(rank):
        results[rank] = run_jobs(jobs, lambda: oracles[rank], workers=ranks.workers(rank), **options)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def plan(jobs, **options):
    places = [(index, number) for index, job in enumerate(jobs) for number in range(len(job.samples))]
    return plan_units(jobs, places, **options)


def finish_loads(units, world_size):
    """Cost that every rank has answered when the queue is empty: the one with the least so far draws next."""
    loads = [0.0] * world_size
    for unit in units:
        heapq.heapreplace(loads, loads[0] + unit.cost)
        heapq.heapify(loads)
    return sorted(loads)


def test_longest_questions_run_first_and_results_keep_the_order_of_samples(tmp_path):
    oracle = Oracle()
    (predictions,) = run_jobs([make_job(tmp_path)], lambda: oracle)
    assert oracle.asked == ["s1", "s2", "s3", "s0"]
    assert [p.id for p in predictions] == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_end_within_a_tenth_of_each_other_on_a_skewed_mix(tmp_path, world_size):
    rng = random.Random(world_size)
    costs = [min(rng.paretovariate(1.0), 60.0) * 1000 for _ in range(30 * world_size)]
    jobs = [make_job(tmp_path, costs=costs), make_job(tmp_path, costs=[64_000] * 3, name="g/u")]
    loads = finish_loads(plan(jobs, world_size=world_size), world_size)
    assert loads[-1] - loads[0] <= 0.1 * loads[-1]


def test_few_pictures_with_many_questions_are_spread_over_ranks(tmp_path):
    job = make_job(tmp_path, costs=[100.0] * 600)
    shared = [replace(sample, images=(Path(f"{int(sample.id[1:]) // 300}.png"),)) for sample in job.samples]
    units = plan([replace(job, samples=tuple(shared))], world_size=3)
    loads = finish_loads(units, 3)
    assert loads[-1] - loads[0] <= 0.1 * loads[-1]
    assert len(units) < 150  # still several questions per drawing


def test_questions_about_the_same_pictures_are_drawn_together_across_tasks(tmp_path):
    jobs = [make_job(tmp_path, costs=[5.0] * 40, name=name) for name in ("g/t", "g/u")]
    jobs = [
        replace(job, samples=tuple(replace(s, images=(Path(f"{int(s.id[1:]) // 4}.png"),)) for s in job.samples))
        for job in jobs
    ]
    for world_size in (1, 2):
        limit = 8 if world_size == 1 else 1
        units = plan(jobs, world_size=world_size)
        pictures = [{jobs[job].samples[number].images for job, number in unit.questions} for unit in units]
        assert all(len(shown) == 1 for shown in pictures)
        assert max(len(unit.questions) for unit in units) == limit
        assert sorted(place for unit in units for place in unit.questions) == [
            (job, number) for job in range(2) for number in range(40)
        ]
    neighbours = [unit.questions[0][1] // 4 for unit in plan(jobs, world_size=2) if unit.questions[0][0] == 0]
    assert neighbours == sorted(neighbours)


def test_batches_hold_questions_of_one_task_and_of_similar_cost(tmp_path):
    jobs = [make_job(tmp_path, costs=range(1, 11)), make_job(tmp_path, costs=[50] * 3, name="g/u")]
    oracle = Oracle()
    first, second = run_jobs(jobs, lambda: oracle, batch_size=4)
    assert [len(batch) for batch in oracle.batches] == [3, 4, 4, 2]
    assert oracle.batches[1:] == [["s9", "s8", "s7", "s6"], ["s5", "s4", "s3", "s2"], ["s1", "s0"]]
    assert [p.id for p in first] == [f"s{i}" for i in range(10)]
    assert [p.id for p in second] == ["s0", "s1", "s2"]


def test_several_ranks_give_one_result(tmp_path):
    jobs = [make_job(tmp_path), make_job(tmp_path, name="g/u")]
    oracles = [Oracle(), Oracle()]
    first, second = run_ranks(jobs, 2, oracles)
    assert second is None
    assert [[p.id for p in job] for job in first] == [["s0", "s1", "s2", "s3"]] * 2
    assert len(oracles[0].asked) + len(oracles[1].asked) == 8


def test_a_rank_that_is_slow_is_left_alone_with_what_it_has(tmp_path):
    """Whoever gets the longest question is not ready before the other rank has answered everything else."""
    job = make_job(tmp_path, costs=[10] + [1] * 30)
    others_done, answered = threading.Event(), []

    class Waiting(Oracle):
        def __call__(self, task, samples):
            if samples[0].id == "s0":
                assert others_done.wait(timeout=60)
            answered.append(samples[0].id)
            if len(answered) == 30:
                others_done.set()
            return super().__call__(task, samples)

    oracles = [Waiting(), Waiting()]
    run_ranks([job], 2, oracles)
    assert sorted(len(oracle.asked) for oracle in oracles) == [1, 30]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_killed_run_continues_with_any_number_of_ranks(tmp_path, world_size):
    job = make_job(tmp_path, costs=range(20))
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], lambda: Oracle(die_after=7))
    part = job.store.folder / "parts" / "0000-of-0001.jsonl"
    part.write_bytes(part.read_bytes()[:-5])  # killed in the middle of the seventh line
    oracles = [Oracle() for _ in range(world_size)]
    predictions = run_ranks([job], world_size, oracles)[0][0]
    assert [p.id for p in predictions] == [s.id for s in job.samples]
    assert sum(len(oracle.asked) for oracle in oracles) == 20 - 6
    assert {s for oracle in oracles for s in oracle.asked}.isdisjoint({f"s{i}" for i in range(14, 20)})


def test_a_finished_run_loads_no_model(tmp_path):
    job = make_job(tmp_path)
    run_jobs([job], Oracle)
    before = job.store.merged_path.read_bytes()

    def load():
        raise AssertionError("the model was loaded")

    run_jobs([job], load)
    assert job.store.merged_path.read_bytes() == before


def test_overwrite_asks_everything_again(tmp_path):
    job = make_job(tmp_path)
    run_jobs([job], Oracle)
    oracle = Oracle()
    run_jobs([job], lambda: oracle, overwrite=True)
    assert len(oracle.asked) == 4


def test_more_samples_later_keep_the_answers_so_far(tmp_path):
    job = make_job(tmp_path)
    run_jobs([Job(job.task, job.samples[:2], job.store)], Oracle)
    oracle = Oracle()
    run_jobs([job], lambda: oracle)
    assert oracle.asked == ["s2", "s3"]


def test_duplicate_ids_are_refused(tmp_path):
    sample = Sample("s0", "?", (), 1)
    job = Job(make_task(), (sample, sample), PredictionStore(tmp_path, {}))
    with pytest.raises(EvalError, match="'s0' is used twice"):
        check_jobs([job])


def test_answers_to_some_questions_only_are_refused(tmp_path):
    samples = tuple(Sample(f"s{i}", "?", (), answer) for i, answer in enumerate(("a", None, None)))
    store = PredictionStore(tmp_path, {})
    with pytest.raises(DataError, match="2 of 3 questions have no answer, the first is 's1'"):
        check_jobs([Job(make_task(), samples, store)])
    check_jobs([Job(make_task(), samples[1:], store), Job(make_task(), samples[:1], store)])


def make_media_job(tmp_path, *names):
    (tmp_path / "there.png").touch()
    samples = tuple(Sample(f"s{i}", "<image>", (tmp_path / name,), 1) for i, name in enumerate(names))
    return Job(make_task(), samples, PredictionStore(tmp_path, {}))


def test_missing_images_are_refused_with_their_place_and_number(tmp_path):
    job = make_media_job(tmp_path, "there.png", "no.png", "none.png", "no.png")
    with pytest.raises(EvalError, match=rf"'s1'.*expected at {tmp_path}/no\.png \(2 of 3 .*--fail_missing"):
        check_jobs([job])


def test_single_missing_images_can_be_let_fail(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        check_jobs([make_media_job(tmp_path, "there.png", "no.png")], fail_missing=True)
    assert "no.png (1 of 2" in caplog.text
    with pytest.raises(EvalError, match=r"2 of 2 pictures") as error:
        check_jobs([make_media_job(tmp_path, "no.png", "none.png")], fail_missing=True)
    assert "--fail_missing" not in str(error.value)


def test_failed_questions_are_kept_and_asked_again_on_demand(tmp_path):
    job = make_job(tmp_path)
    (predictions,) = run_jobs([job], lambda: Failing("s1", "s3"))
    assert [p.failure for p in predictions] == [None, "out of memory", None, "out of memory"]
    again = Oracle()
    run_jobs([job], lambda: again)
    assert again.asked == []
    half = Failing("s3")
    (predictions,) = run_jobs([job], lambda: half, retry_failed=True)
    assert half.asked == ["s1", "s3"]
    assert [p.failure for p in predictions] == [None, None, None, "out of memory"]
    (predictions,) = run_ranks([job], 2, [Oracle(), Oracle()], retry_failed=True)[0]
    assert [p.failure for p in predictions] == [None] * 4
    assert list_open([job], retry_failed=True) == []


def test_what_a_process_has_to_say_before_it_ends_is_written(tmp_path):
    job = make_job(tmp_path)

    def run_out_of_memory(task, samples):
        raise LastAnswerError("out of memory", [Prediction.failed(samples[0], "out of memory")])

    for member in (1, 0):  # any process of a group, and more than one of them
        workers = Workers(0, 1, member=member, share=lambda units: plan([job]))
        job.store.prepare()
        with pytest.raises(LastAnswerError):
            run_jobs([job], lambda: run_out_of_memory, workers=workers)
    assert [p.id for p in job.store.read().values()] == ["s1"]
    oracle = Oracle()
    (predictions,) = run_jobs([job], lambda: oracle)
    assert oracle.asked == ["s2", "s3", "s0"]
    assert predictions[1].failure == "out of memory"


def test_tasks_without_samples_are_refused(tmp_path):
    with pytest.raises(EvalError, match="no samples"):
        check_jobs([Job(make_task(), (), PredictionStore(tmp_path, {}))])

import threading
from pathlib import Path

import pytest

from eval.core.runner import Job, Workers, check_jobs, run_jobs, share_questions
from eval.core.sample import Prediction, Sample
from eval.core.store import PredictionStore
from eval.core.task import Task
from internvl.errors import EvalError


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
        self.asked, self.die_after = [], die_after

    def __call__(self, task, sample):
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise KeyboardInterrupt
        self.asked.append(sample.id)
        return Prediction(sample.id, str(sample.answer), sample.answer, {}, 1, 0, 0.0, 0.0)


def run_ranks(jobs, world_size, oracles):
    barrier = threading.Barrier(world_size)
    results = [None] * world_size

    def work(rank):
        workers = Workers(rank, world_size, barrier.wait)
        results[rank] = run_jobs(jobs, lambda: oracles[rank], workers=workers)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_longest_questions_run_first_and_results_keep_the_order_of_samples(tmp_path):
    oracle = Oracle()
    (predictions,) = run_jobs([make_job(tmp_path)], lambda: oracle)
    assert oracle.asked == ["s1", "s2", "s3", "s0"]
    assert [p.id for p in predictions] == ["s0", "s1", "s2", "s3"]


def test_ranks_share_the_cost_evenly_and_answer_each_question_once(tmp_path):
    jobs = [make_job(tmp_path, costs=[100, 90, 50, 40, 30, 5, 5]), make_job(tmp_path, costs=[80, 1], name="g/u")]
    for job in jobs:
        job.store.prepare()
    shares = share_questions(jobs, 3)
    assert sorted((i, s.id) for share in shares for i, s in share) == sorted(
        (i, s.id) for i, job in enumerate(jobs) for s in job.samples
    )
    loads = [sum(s.cost for _, s in share) for share in shares]
    assert max(loads) - min(loads) <= 15
    assert shares == share_questions(jobs, 3)


def test_several_ranks_give_one_result(tmp_path):
    jobs = [make_job(tmp_path), make_job(tmp_path, name="g/u")]
    oracles = [Oracle(), Oracle()]
    first, second = run_ranks(jobs, 2, oracles)
    assert second is None
    assert [[p.id for p in job] for job in first] == [["s0", "s1", "s2", "s3"]] * 2
    assert len(oracles[0].asked) == len(oracles[1].asked) == 4


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


def test_missing_images_are_refused_with_their_place(tmp_path):
    sample = Sample("s0", "<image>", (tmp_path / "no.png",), 1)
    with pytest.raises(EvalError, match=rf"expected at {tmp_path}/no\.png"):
        check_jobs([Job(make_task(), (sample,), PredictionStore(tmp_path, {}))])


def test_tasks_without_samples_are_refused(tmp_path):
    with pytest.raises(EvalError, match="no samples"):
        check_jobs([Job(make_task(), (), PredictionStore(tmp_path, {}))])

"""A prompt answered by several ranks: the tokens of one process, a share of the cache each, over gloo."""

import json
from itertools import chain
from pathlib import Path

import pytest

from tests.train.tiny_run import launch, tail

WORKER = Path(__file__).with_name("context_parallel_worker.py")
# Processes -> sizes of groups that they are divided into, one after the other.
WORLDS = {3: [3], 4: [4, 2]}


@pytest.fixture(scope="module", params=WORLDS)
def groups(request, tmp_path_factory):
    """Per size of a group and group of that size, what its ranks found."""
    num_processes = request.param
    sizes = WORLDS[num_processes]
    output = tmp_path_factory.mktemp("context_parallel") / "found.json"
    result = launch(WORKER, [str(output), str(sizes[-1])], num_processes=num_processes)
    assert result.returncode == 0, tail(result)
    found = json.loads(output.read_text())
    assert [len(rank) for rank in found] == [len(sizes)] * num_processes
    return [
        [rank[index] for rank in found[first : first + size]]
        for index, size in enumerate(sizes)
        for first in range(0, num_processes, size)
    ]


def test_all_ranks_answer_as_one_process_does(groups):
    assert len(groups[0][0]["answers"]) == (25 if len(groups) == 1 else 11)
    for rank in chain(*groups):
        answers = rank["answers"]
        assert {case: a["tokens"] for case, a in answers.items()} == {
            case: a["expected"] for case, a in answers.items()
        }
        assert {case: a["error"] for case, a in answers.items() if not a["error"] < 1e-4} == {}


def test_answers_are_not_all_alike(groups):
    """Or equality would show nothing."""
    answers = groups[0][0]["answers"].values()
    assert len({tuple(answer["expected"]) for answer in answers}) > len(answers) / 3


def test_keys_and_values_are_spread_over_the_ranks(groups):
    for group in groups:
        for case, first in group[0]["answers"].items():
            held = [rank["answers"][case]["held"] for rank in group]
            assert sum(held) == first["length"], case
            if "prefill_chunk_size" not in case:  # padding, all of it at the end of one chunk, and a token
                assert max(held) - min(held) <= 2 * len(group), case


def test_images_can_be_encoded_where_they_were_loaded(groups):
    for rank in chain(*groups):
        assert rank["from own tiles"] == rank["from all tiles"]


def test_an_error_of_one_rank_is_raised_on_all(groups):
    assert {rank["failure"] for rank in chain(*groups)} == {"a.png cannot be read"}


def test_ranks_with_different_prompts_do_not_wait_for_each_other(groups):
    assert all("different prompts or limits" in rank["different prompts"] for rank in chain(*groups))


def test_the_first_rank_of_a_group_speaks_for_it(groups):
    for group in groups:
        assert [rank["is_first"] for rank in group] == [True, *[False] * (len(group) - 1)]
        assert len({rank["shared"] for rank in group}) == 1
    assert len({group[0]["shared"] for group in groups[-2:]}) == len(groups[-2:])

"""Position schemes on rows and prompts that ranks share: positions are made on the whole row, then cut."""

import json
from pathlib import Path

from internvl.model.positions import SCHEMES
from tests.train.tiny_run import launch, tail

WORKER = Path(__file__).with_name("positions_worker.py")


def test_ranks_together_equal_one_process_at_every_version(tmp_path):
    output = tmp_path / "found.json"
    result = launch(WORKER, [str(output)], num_processes=2)
    assert result.returncode == 0, tail(result)
    for rank in json.loads(output.read_text()):
        assert {case.split()[1] for case in rank} == {*SCHEMES}
        assert {case: errors for case, errors in rank.items() if not max(errors) < 1e-4} == {}

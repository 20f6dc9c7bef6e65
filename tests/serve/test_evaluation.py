"""An evaluation through the server: the answers and scores of a direct run."""

import json

import pytest

from eval.run.__main__ import main
from internvl.infer.session import Session
from internvl.synth.miniature.__main__ import main as build
from tests.serve.conftest import TINY, run_server


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniature")
    small = ["--filler_sentences", "0", "1", "--train", "0-4:2", "--num_items", "6", "--factors", "1"]
    assert build(["--out", str(root), "--tokenizer", str(TINY), "--name", "small", *small]) == 0
    return root / "benchmark"


def test_scores_through_the_server_are_those_of_a_direct_run(data_root, tmp_path):
    tasks = "mm_niah/retrieval-text-test,mm_niah/retrieval-image-test,mm_niah/reasoning-image-test"
    positions = ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/4", "--max_num", "64"]
    shared = ["--tasks", tasks, "--data_root", str(data_root), *positions]
    direct, served = tmp_path / "direct", tmp_path / "served"
    assert main(["--checkpoint", str(TINY), "--device", "cpu", "--out", str(direct), *shared]) == 0
    with run_server(Session.from_pretrained(TINY, device="cpu", reuse_prefix=True), max_pictures=200) as client:
        endpoint = ["--endpoint", str(client.base_url), "--model", "tiny", "--out", str(served)]
        assert main([*endpoint, *shared]) == 0
    num_right = 0
    for task in tasks.split(","):
        results = [json.loads((run / task / "scores.json").read_text())["results"] for run in (direct, served)]
        assert results[0] == results[1]
        num_right += results[0]["official"]["score"] * 6
        lines = [[json.loads(line) for line in (run / task / "predictions.jsonl").open()] for run in (direct, served)]
        for first, second in zip(*lines, strict=True):
            assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert num_right > 6  # the model can do it

"""Whole evaluations with a tiny random model: what a user starts, kills, starts again, and gets wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace as replace_field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.run.__main__ import choose_layer_devices, main, run
from eval.run.options import RunOptions, parse_options
from eval.score import main as score
from internvl.errors import ConfigError
from internvl.infer.session import Session
from internvl.infer.settings import InferenceSettings
from internvl.parallel.launch import RankEnv
from tests.train.tiny_run import torchrun
from tests.warm_python import warm_python

ROOT = Path(__file__).parents[3]
EDGES = ["--length_bins", "100", "200", "300", "400"]


@pytest.fixture
def arguments(checkpoint, benchmark_root, record, tmp_path):
    """A working command line with two tasks of 8 questions."""
    benchmark_root.write("retrieval-text", [record(i, num_images=1 + i % 3, chance=0.1) for i in range(8)])
    benchmark_root.write(
        "reasoning-image", [record(i, answer=i % 2, num_images=2, choices=["up", "down"]) for i in range(8)]
    )
    tasks = "mm_niah/retrieval-text-test,mm_niah/reasoning-image-test"
    return [
        "--checkpoint", str(checkpoint), "--tasks", tasks, "--data-root", str(benchmark_root.root),
        "--out", str(tmp_path / "out"), "--device", "cpu", *EDGES,
    ]  # fmt: skip


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def replace(arguments, name, value):
    position = arguments.index(name) + 1
    return [*arguments[:position], value, *arguments[position + 1 :]]


def without_times(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(path)]


def test_a_run_leaves_predictions_scores_plots_and_a_table(arguments, tmp_path, capsys):
    assert main([*arguments, "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/4"]) == 0
    folder = tmp_path / "out" / "mm_niah" / "retrieval-text-test"
    lines = read_lines(folder / "predictions.jsonl")
    assert [line["id"] for line in lines] == [str(i) for i in range(8)]
    assert all(line["num_tiles"] >= 1 and line["seconds"] > 0 for line in lines)
    wide = [line for line in lines if line["num_tiles"] >= 3]
    assert wide
    assert all(line["last_position"] < line["num_prompt_tokens"] - 1 for line in wide)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["settings"]["rope_pos_id_stride"] == 0.25
    official = scores["results"]["official"]
    assert (official["count"], official["chance"]) == (8, pytest.approx(0.1))
    assert [row["low"] for row in official["by_length"]] == [100, 200, 300, 400]
    assert {"heatmap.png", "accuracy_by_length.png"} <= {path.name for path in folder.iterdir()}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [task["task"] for task in summary["tasks"]] == arguments[3].split(",")
    assert "V2PE stride 1/4" in capsys.readouterr().out


def test_scores_can_be_made_again_without_the_model(arguments, tmp_path, monkeypatch):
    assert main(arguments) == 0
    scores = tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "scores.json"
    before = scores.read_text()
    scores.unlink()
    monkeypatch.setattr("eval.run.answering.Session", None)
    assert score([str(tmp_path / "out"), *EDGES]) == 0
    assert scores.read_text() == before
    assert score([str(tmp_path / "out"), "--length_bins", "250"]) == 0
    rows = json.loads(scores.read_text())["results"]["official"]["by_length"]
    assert [(row["low"], row["count"]) for row in rows] == [(None, 4), (250, 4)]


def test_scoring_nothing_is_an_error(tmp_path, capsys):
    assert score([str(tmp_path)]) == 2
    assert re.search(r"error: .*predictions\.jsonl", capsys.readouterr().err)


def test_limit_asks_the_first_samples_and_a_later_run_the_rest(arguments, tmp_path):
    assert main([*arguments, "--limit", "3"]) == 0
    path = tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "predictions.jsonl"
    first = read_lines(path)
    assert len(first) == 3
    assert main(arguments) == 0
    assert read_lines(path)[:3] == first
    assert len(read_lines(path)) == 8


def test_default_folder_is_named_after_the_positions(arguments, checkpoint, tmp_path):
    place = arguments.index("--out")
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    command = replace(arguments[:place] + arguments[place + 2 :], "--checkpoint", str(copy))
    assert main([*command, "--limit", "1"]) == 0
    assert main([*command, "--limit", "1", "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "2"]) == 0
    assert {path.name for path in copy.glob("eval_*")} == {"eval_default", "eval_v2pe_fix_2"}


@pytest.mark.parametrize(("ablation", "sees_tiles"), [("text_only", False), ("no_image", True)])
def test_an_ablation_names_the_folder_and_is_a_setting_of_the_result(
    arguments, checkpoint, tmp_path, ablation, sees_tiles
):
    place = arguments.index("--out")
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    command = replace(arguments[:place] + arguments[place + 2 :], "--checkpoint", str(copy))
    assert main([*command, "--limit", "1", "--ablate", ablation]) == 0
    folder = copy / f"eval_default_{ablation}" / "mm_niah" / "retrieval-text-test"
    assert json.loads((folder / "settings.json").read_text())["settings"]["ablate"] == ablation
    [line] = read_lines(folder / "predictions.jsonl")
    assert (line["num_tiles"] > 0) == sees_tiles
    assert line["metadata"]["context_length"] == 100


def test_rope_scaling_names_folder_and_table_and_reaches_the_model(
    arguments, checkpoint, tmp_path, capsys, monkeypatch
):
    place = arguments.index("--out")
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    command = replace(arguments[:place] + arguments[place + 2 :], "--checkpoint", str(copy))
    sessions = []
    original = Session.from_pretrained.__func__
    monkeypatch.setattr(
        Session,
        "from_pretrained",
        classmethod(lambda *args, **kw: sessions.append(original(*args, **kw)) or sessions[-1]),
    )
    flags = ["--limit", "1", "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "2"]
    assert main([*command, *flags, "--rope_scaling", "yarn:4"]) == 0
    assert [path.name for path in copy.glob("eval_*")] == ["eval_v2pe_fix_2_yarn-4"]
    assert "V2PE stride 2, yarn:4" in capsys.readouterr().out
    scaling = sessions[0].model.config.llm_config.rope_scaling
    assert (scaling["type"], scaling["factor"], scaling["scale_v2pe"]) == ("yarn", 4.0, True)


def test_the_checkpoints_own_stride_is_used(arguments, checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    config |= {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 2.0}
    (copy / "config.json").write_text(json.dumps(config))
    command = replace(arguments, "--checkpoint", str(copy))
    assert main([*command, "--limit", "1", "--rope_pos_id_version", "v2pe_fix"]) == 0
    settings = json.loads((tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "settings.json").read_text())
    assert settings["settings"]["rope_pos_id_stride"] == 2


OTHER_SETTINGS = (
    (["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1"], "rope_pos_id_stride: saved None, asked 1"),
    (["--max_num", "2"], "max_num: saved 5, asked 2"),
    (["--prompts", "official"], "prompts: saved 'upstream', asked 'official'"),
    (["--dtype", "bfloat16"], "dtype: saved 'float32', asked 'bfloat16'"),
    (["--kv_cache", "quantized"], "kv_cache: saved None, asked 'quantized'"),
    (["--rope_scaling", "yarn:4"], "rope_scaling: saved None, asked 'yarn:4'"),
    (["--ablate", "no_image"], "ablate: saved None, asked 'no_image'"),
)


def test_other_settings_are_refused_until_overwritten(arguments, tmp_path, capsys):
    assert main([*arguments, "--limit", "1"]) == 0
    before = (tmp_path / "out" / "summary.json").read_text()
    for extra, difference in OTHER_SETTINGS:
        assert main([*arguments, *extra]) == 2
        assert difference in capsys.readouterr().err
        assert (tmp_path / "out" / "summary.json").read_text() == before
    assert main([*arguments, "--dtype", "bfloat16", "--limit", "1", "--overwrite"]) == 0


def test_caches_that_give_the_same_answers_share_predictions(arguments, tmp_path, capsys):
    arguments = replace(arguments, "--tasks", "mm_niah/retrieval-text-test")
    path = tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "predictions.jsonl"
    assert main([*arguments, "--kv_cache", "static"]) == 0
    whole = without_times(path)
    assert main([*arguments, "--overwrite"]) == 0
    assert without_times(path) == whole
    assert main([*arguments, "--overwrite", "--limit", "1", "--kv_cache", "offloaded"]) == 0
    assert main([*arguments, "--kv_cache", "static", "--prefill_chunk_size", "50"]) == 0
    assert without_times(path) == whole


def test_quantized_predictions_belong_to_their_chunks(arguments, capsys):
    quantized = [*arguments, "--kv_cache", "quantized", "--limit", "1"]
    assert main([*quantized, "--prefill_chunk_size", "50"]) == 0
    assert main(quantized) == 2
    assert "prefill_chunk_size: saved 50, asked None" in capsys.readouterr().err


def test_other_weights_are_refused(arguments, checkpoint, tmp_path, capsys):
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    command = [*replace(arguments, "--checkpoint", str(copy)), "--limit", "1"]
    assert main(command) == 0
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert main(command) == 2
    assert "checkpoint: saved" in capsys.readouterr().err


def spoil(arguments, case, benchmark_root, record):
    stem = benchmark_root.root / "MM-NIAH" / "mm_niah_test" / "annotations" / "retrieval-text.jsonl"
    if case == "duplicate ids":
        benchmark_root.write("retrieval-text", [record(1), record(1)])
    elif case == "missing annotation":
        stem.unlink()
    elif case == "missing image":
        benchmark_root.write("retrieval-text", [record(0, num_images=9)])
    elif case == "empty annotation":
        stem.write_text("")
    elif case == "missing checkpoint":
        return replace(arguments, "--checkpoint", "/nowhere/model")
    return arguments


@pytest.mark.parametrize(
    ("case", "extra", "message"),
    [
        ("missing checkpoint", [], r"checkpoint folder /nowhere/model does not exist"),
        ("", ["--rope_pos_id_version", "v2pe"], r"unknown rope_pos_id_version 'v2pe'"),
        ("", ["--rope_pos_id_version", "v2pe_fix"], r"v2pe_fix needs rope_pos_id_stride"),
        ("", ["--rope_scaling", "yarn"], r"--rope_scaling: factor is None"),
        ("", ["--rope_scaling", "su:4"], r"--rope_scaling 'su:4' is not known; expected none, linear:FACTOR"),
        (
            "",
            ["--rope_scaling", "dynamic:2", "--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1"],
            r"dynamic NTK follows the number of tokens",
        ),
        ("", ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "0"], r"must be a positive number, got 0"),
        ("", ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride=-4"], r"must be a positive number, got -4"),
        ("", ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/3"], r"multiple of 1/65536"),
        ("", ["--tasks", "mm_niah/none-test"], r"unknown task"),
        ("", ["--max_num", "0"], r"--max_num must be at least 1"),
        ("", ["--limit", "0"], r"--limit must be at least 1"),
        ("", ["--length_bins", "5", "3"], r"rising"),
        ("", ["--protocol", "mine"], r"--protocol must be one of official, upstream"),
        ("missing annotation", [], r"expected at /.*mm_niah_test/annotations/retrieval-text\.jsonl"),
        ("empty annotation", [], r"no records"),
        ("missing image", [], r"image not found, expected at .*/images/4\.png"),
        ("duplicate ids", [], r"id '1' is used twice"),
    ],
)
def test_bad_input_ends_with_a_clear_error_and_nothing_written(
    arguments, benchmark_root, record, tmp_path, capsys, monkeypatch, case, extra, message
):
    monkeypatch.setattr("eval.run.answering.Session", None)  # nothing may be loaded
    assert main([*spoil(arguments, case, benchmark_root, record), *extra]) == 2
    captured = capsys.readouterr()
    assert re.search(f"error: .*{message}", captured.err)
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_damaged_pictures_fail_count_as_wrong_and_are_tried_again_on_demand(
    arguments, benchmark_root, record, tmp_path, capsys
):
    benchmark_root.write("retrieval-text", [record(i, num_images=1 + (i == 3)) for i in range(8)])
    damaged = benchmark_root.root / "MM-NIAH" / "mm_niah_test" / "images" / "1.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    command = [*replace(arguments, "--tasks", "mm_niah/retrieval-text-test"), "--batch_size", "3"]
    folder = tmp_path / "out" / "mm_niah" / "retrieval-text-test"

    def read_results():
        official = json.loads((folder / "scores.json").read_text())["results"]["official"]
        return official["count"], official["num_failed"]

    assert main(command) == 0
    captured = capsys.readouterr()
    assert "1 of 8 questions FAILED and count as wrong" in captured.out
    assert re.search(r"1 x .*1\.png", captured.out)
    [failed] = [line for line in read_lines(folder / "predictions.jsonl") if line["failure"]]
    assert failed["id"] == "3"
    assert "1.png" in failed["failure"]
    assert read_results() == (8, 1)
    assert main([*command, "--max_failed", "0.1"]) == 3
    assert "more than --max_failed 0.1" in capsys.readouterr().out

    damaged.write_bytes(whole)
    assert main(command) == 0
    assert read_results() == (8, 1)
    assert main([*command, "--retry_failed"]) == 0
    assert read_results() == (8, 0)
    assert "FAILED" not in capsys.readouterr().out.rpartition("questions FAILED")[2]


def test_batches_give_the_predictions_of_one_by_one(arguments, tmp_path):
    assert main(arguments) == 0
    assert main([*replace(arguments, "--out", str(tmp_path / "batches")), "--batch_size", "3"]) == 0
    for task in ("retrieval-text-test", "reasoning-image-test"):
        files = [tmp_path / out / "mm_niah" / task / "predictions.jsonl" for out in ("out", "batches")]
        assert without_times(files[0]) == without_times(files[1])


def test_missing_pictures_are_refused_or_counted_as_failed(arguments, benchmark_root, record, tmp_path, capsys):
    benchmark_root.write("retrieval-text", [record(i, num_images=5 if i == 2 else 1) for i in range(3)])
    command = replace(arguments, "--tasks", "mm_niah/retrieval-text-test")
    assert main(command) == 2
    assert re.search(r"4\.png \(1 of 5 .*--fail_missing", capsys.readouterr().err)
    assert main([*command, "--fail_missing"]) == 0
    lines = read_lines(tmp_path / "out" / "mm_niah" / "retrieval-text-test" / "predictions.jsonl")
    assert ["4.png" in (line["failure"] or "") for line in lines] == [False, False, True]


def test_another_stride_than_the_saved_one_is_a_note(arguments, checkpoint, tmp_path, caplog):
    copy = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    config |= {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 2.0}
    (copy / "config.json").write_text(json.dumps(config))
    command = [*replace(arguments, "--checkpoint", str(copy)), "--limit", "1", "--rope_pos_id_version"]
    assert main([*command, "v2pe_fix", "--rope_pos_id_stride", "1/4"]) == 0
    assert "saved with stride 2.0 and is evaluated with stride 0.25" in caplog.text
    assert main([*command, "default", "--overwrite"]) == 0
    assert "saved with --rope_pos_id_version v2pe_fix and is evaluated with ordinary positions" in caplog.text


@pytest.mark.parametrize(
    ("size", "what"), [("16k", r"parts/.*what was answered .*is kept"), ("20k", "predictions.jsonl")]
)
def test_a_full_disk_ends_the_run_with_a_clear_error_and_it_continues_later(arguments, tmp_path, capsys, size, what):
    """There is room for some answers, or for all of them but not for the merged file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if os.geteuid() or subprocess.run([*mount, f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a disk of its own")
    try:
        command = replace(arguments, "--out", str(disk / "out"))
        assert main(command) == 2
        error = capsys.readouterr().err
        assert re.search(rf"error: cannot write .*{what}", error)
        assert "No space left on device" in error
        assert "Traceback" not in error
        before = [line for part in disk.rglob("parts/*.jsonl") for line in read_lines(part)]
        assert before
        subprocess.run([*mount, "remount,size=8m", "tmpfs", disk], check=True)
        assert main(command) == 0
        parts = [line for part in disk.rglob("parts/*.jsonl") for line in read_lines(part)]
        assert len(parts) == 16
        assert all(line in parts for line in before)
    finally:
        subprocess.run(["umount", disk], check=True)


def start(arguments, num_processes=1):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = torchrun(num_processes) if num_processes > 1 else [warm_python()]
    command = [*launcher, "-m", "eval.run", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def find_long_parts(out: Path) -> list[Path]:
    """Files of one process with a few answers."""
    return [path for path in out.rglob("parts/0000-of-0001.jsonl") if path.stat().st_size > 300]


def test_a_killed_run_continues_under_torchrun_with_the_same_scores(arguments, benchmark_root, record, tmp_path):
    benchmark_root.write("retrieval-text", [record(i, num_images=3) for i in range(24)])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(replace(arguments, "--out", str(whole))) == 0

    killed = start(replace(arguments, "--out", str(broken)))
    deadline = time.monotonic() + 300
    while not (begun := find_long_parts(broken)) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(broken.rglob("predictions.jsonl"))
    begun[0].write_bytes(begun[0].read_bytes()[:-7])

    again = start(replace(arguments, "--out", str(broken)), 2)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out.count("| task") == 1
    for task in ("retrieval-text-test", "reasoning-image-test"):
        folders = [run / "mm_niah" / task for run in (whole, broken)]
        first, second = (without_times(folder / "predictions.jsonl") for folder in folders)
        assert first == second
        results = [json.loads((folder / "scores.json").read_text())["results"] for folder in folders]
        assert results[0] == results[1]
    assert len(list(broken.rglob("parts/*-of-0002.jsonl"))) >= 2  # both tasks were open


def test_groups_that_answer_together_give_the_predictions_of_one_process(arguments, tmp_path):
    """Four processes in two groups; a run of a single process does not start anew what they answered."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    options = ["--rope_pos_id_version", "v2pe_fix", "--rope_pos_id_stride", "1/4", "--prefill_chunk_size", "64"]
    assert main([*replace(arguments, "--out", str(whole)), *options]) == 0
    ring = [*options, "--ring_attn", "--gpus_per_task", "2"]
    process = start([*replace(arguments, "--out", str(shared)), *ring], 4)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert out.count("| task") == 1
    for task in ("retrieval-text-test", "reasoning-image-test"):
        files = [run / "mm_niah" / task / "predictions.jsonl" for run in (whole, shared)]
        assert without_times(files[0]) == without_times(files[1])
        assert len(read_lines(files[1])) == 8
    assert len(list(shared.rglob("parts/*-of-0002.jsonl"))) == 4
    assert main([*replace(arguments, "--out", str(shared)), *options]) == 0


def test_two_ranks_whose_weights_are_nan_fail_every_question_and_say_so(arguments, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    weights["language_model.model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    process = start(replace(arguments, "--checkpoint", str(broken)), 2)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1, err  # of torchrun, for our 3
    assert out.count("8 of 8 questions FAILED") == 2
    lines = read_lines(tmp_path / "out/mm_niah/retrieval-text-test/predictions.jsonl")
    assert all("NaN or infinite" in line["failure"] for line in lines)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--ring_attn", "--gpus_per_task", "2"], "--gpus_per_task 2 does not divide the 1 processes"),
        (["--gpus_per_task", "2"], "needs 2 GPUs, this machine has 0"),
        (["--gpus_per_task", "0"], "--gpus_per_task must be at least 1"),
        (["--ring_attn", "--kv_cache", "quantized"], "ranks that answer together take dynamic or static"),
        (["--ring_attn", "--batch_size", "2"], "ranks that answer together take one question at a time"),
        (["--kv_cache", "quantized", "--batch_size", "2"], "kv_cache quantized takes one question at a time"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--max_failed", "2"], "--max_failed must be a share from 0 to 1"),
    ],
)
def test_groups_that_cannot_be_are_refused(arguments, capsys, extra, message):
    assert main([*arguments, *extra]) == 2
    assert message in capsys.readouterr().err


def test_options_may_be_written_with_either_dash():
    command = ["--checkpoint", "a-b", "--tasks", "pope", "--max-num=3", "--data-root", "d_e-f", "--batch_size", "2"]
    options = parse_options(command)
    assert (options.checkpoint, options.settings.max_num, options.data_root) == (Path("a-b"), 3, Path("d_e-f"))
    assert options.batch_size == 2


@pytest.mark.parametrize(("more", "expected"), [((), "cuda:3"), (("--gpus_per_task", "2"), "cuda:6")])
def test_a_process_opens_its_context_on_its_own_gpu(arguments, monkeypatch, more, expected):
    """Processes that answer by themselves have no group on the GPU, which would choose one."""

    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("eval.run.__main__.join_workers", stop)
    options = parse_options([*replace(arguments, "--device", "cuda"), *more])
    with pytest.raises(Stopped):
        run(options, RankEnv(rank=3, local_rank=3, world_size=4, local_world_size=4))
    assert chosen == [expected]


def test_layers_go_to_the_gpus_of_their_process(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = RunOptions("mm_niah", tmp_path, InferenceSettings(device="cuda"), gpus_per_task=3)
    env = RankEnv(rank=3, local_rank=1, world_size=4, local_world_size=2)
    assert choose_layer_devices(options, env) == ["cuda:3", "cuda:4", "cuda:5"]
    assert choose_layer_devices(replace_field(options, ring_attn=True), env) == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match="needs 8 GPUs, this machine has 4"):
        choose_layer_devices(replace_field(options, gpus_per_task=4), env)

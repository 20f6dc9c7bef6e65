"""What runs report, against numbers computed one document at a time: one process, DDP, shared rows, ZeRO, LoRA."""

import json
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.grid import Grid
from internvl.train.arguments import parse_arguments
from internvl.train.finetune import _build_loader, build_encoder
from internvl.train.model_loading import load_training_tokenizer, settle_flags
from tests.distributed.test_training import Runs, zero_config
from tests.train.tiny_run import flags, launch, tail

STEPS, ROW_TOKENS = 4, 1000
WORKER = Path(__file__).with_name("train_worker.py")
EXACT = ("targets", "tiles", "samples", "fill_rate")


@pytest.fixture(scope="module")
def two_sources(meta, tmp_path_factory) -> Path:
    """The tiny data set, divided in two."""
    folder = tmp_path_factory.mktemp("sources")
    lines = (meta.parent / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "short.jsonl").write_text("".join(lines[:30]))
    (folder / "long.jsonl").write_text("".join(lines[30:]))
    root = str(meta.parent / "images")
    entries = {name: {"annotation": f"{name}.jsonl", "root": root} for name in ("short", "long")}
    (folder / "meta.json").write_text(json.dumps(entries))
    return folder / "meta.json"


def options(**changes: object) -> dict:
    return {"max_steps": STEPS, "max_packed_tokens": ROW_TOKENS, "gradient_accumulation_steps": 2, **changes}


@pytest.fixture(scope="module")
def alone(checkpoint, two_sources, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("alone"), checkpoint, two_sources)
    runs.add("each", **options(peak_tflops=0.5, report_to="tensorboard"))
    runs.add("pairs", **options(logging_steps=2, save_strategy="steps", save_steps=3))
    resumed = runs.folder / "pairs" / "checkpoint-3"
    runs.add("resumed", **options(resume_from_checkpoint=resumed))
    rates = {"mlp_learning_rate": 1e-3, "vision_learning_rate": 2e-3, "vit_layer_decay_rate": 0.5}
    runs.add("rates", **options(**rates))
    runs.add("lora", **options(use_llm_lora=2, freeze_backbone=True, mlp_learning_rate=1e-3, max_steps=1))
    runs.start(num_processes=1)
    return runs


@pytest.fixture(scope="module")
def together(checkpoint, two_sources, tmp_path_factory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("together"), checkpoint, two_sources)
    rates = {"mlp_learning_rate": 1e-3, "vision_learning_rate": 2e-3, "vit_layer_decay_rate": 0.5}
    runs.add("ddp", **options(gradient_accumulation_steps=1))
    runs.add("ring", **options(chunk_num=2))
    runs.add("rates-ddp", **options(gradient_accumulation_steps=1, **rates))
    runs.add("rates-zero2", **options(gradient_accumulation_steps=1, **rates, deepspeed=zero_config(runs.folder, 2)))
    runs.add("rates-own", **options(gradient_accumulation_steps=1, **rates, deepspeed=own_optimizer(runs.folder)))
    runs.start(num_processes=2)
    return runs


def own_optimizer(folder: Path) -> Path:
    """ZeRO-1 with an optimiser in DeepSpeed's file, values from the flags; torch's own, which needs no compiler."""
    config = json.loads(zero_config(folder, 1).read_text())
    params = {**dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"), "torch_adam": True}
    path = folder / "own.json"
    path.write_text(json.dumps(config | {"optimizer": {"type": "AdamW", "params": params}}))
    return path


def history(run: Path) -> list[dict]:
    entries = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "tokens_per_second" in entry]


@pytest.fixture(scope="module")
def first_step(checkpoint, two_sources, tmp_path_factory) -> dict:
    """The two rows of the first step, document by document, without packing: plain cross entropy of plain logits."""
    arguments = parse_arguments(flags(checkpoint, two_sources, tmp_path_factory.mktemp("none"), **options()))
    settle_flags(arguments.data, None)
    tokenizer, _ = load_training_tokenizer(arguments.model, arguments.data.max_seq_length)
    model = InternVLChatModel.from_pretrained(checkpoint, dtype=torch.float32).train()
    model.config.rope_pos_id_version = "v2pe_rnd"
    loader = _build_loader(
        arguments.data,
        Namespace(**vars(arguments.training) | {"output_dir": str(tmp_path_factory.mktemp("none"))}),
        encoder=build_encoder(arguments.data, tokenizer=tokenizer, num_image_token=model.num_image_token),
        grid=Grid(),
    )
    sums: dict = {name: Counter() for name in ("samples", "tokens", "weight", "loss")}
    lengths, num_targets, num_tiles = [], 0, 0
    rows = iter(loader)
    for batch in (next(rows), next(rows)):
        borders = batch["cu_seqlens"].tolist()
        tiles = images = 0
        for (source, _), start, stop in zip(batch["document_refs"].tolist(), borders, borders[1:], strict=False):
            ids, labels = batch["input_ids"][:, start:stop], batch["labels"][0, start:stop]
            own_tiles = int((ids == model.img_context_token_id).sum()) // model.num_image_token
            own_images = int((ids == tokenizer.convert_tokens_to_ids("<img>")).sum())
            with torch.no_grad():
                logits = model(
                    input_ids=ids,
                    pixel_values=batch["pixel_values"][tiles : tiles + own_tiles] if own_tiles else None,
                    image_strides=batch["image_strides"][images : images + own_images],
                    rope_pos_id_version="v2pe_rnd",
                ).logits[0]
            tiles, images = tiles + own_tiles, images + own_images
            losses = F.cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=-100)
            number = int((labels[1:] != -100).sum())
            sums["samples"][source] += 1
            sums["tokens"][source] += stop - start
            sums["weight"][source] += number**0.5
            sums["loss"][source] += float(losses.sum()) / number**0.5
            lengths.append(stop - start)
            num_targets += number
        num_tiles += len(batch["pixel_values"])
    return {**sums, "lengths": lengths, "num_targets": num_targets, "num_tiles": num_tiles}


@pytest.mark.parametrize("run", ["each", "ddp", "ring"])
def test_loss_and_counts_of_data_sets_equal_those_of_single_documents(alone, together, first_step, run):
    runs = alone if run == "each" else together
    entry = history(runs[run])[0]
    for number, name in enumerate(("short", "long")):
        assert first_step["samples"][number] > 0
        assert entry[f"samples/{name}"] == first_step["samples"][number]
        assert entry[f"tokens/{name}"] == first_step["tokens"][number]
        expected = first_step["loss"][number] / first_step["weight"][number]
        assert entry[f"loss/{name}"] == pytest.approx(expected, abs=2e-5)
    whole = sum(first_step["loss"].values()) / sum(first_step["weight"].values())
    assert entry["loss"] == pytest.approx(whole, abs=2e-5)
    assert entry["targets"] == first_step["num_targets"]
    assert entry["tiles"] == first_step["num_tiles"]
    assert entry["fill_rate"] == pytest.approx(sum(first_step["lengths"]) / (2 * ROW_TOKENS), abs=1e-4)


def test_work_equals_a_count_by_hand(alone, first_step):
    """Two FLOPs a weight and token; attention over pairs of tokens of a document; three passes."""
    entry = history(alone["each"])[0]
    vocabulary = json.loads((alone.checkpoint / "config.json").read_text())["llm_config"]["vocab_size"]
    lengths, num_tiles = first_step["lengths"], first_step["num_tiles"]
    weights = 2 * (32 * (4 + 2 + 2) * 8 + 32 * 32 + 3 * 32 * 48)
    attention = 2 * 4 * 32 * sum(n * (n + 1) / 2 for n in lengths)
    tile = 2 * 16 * 3 * 49 * 16 + 2 * (17 * 2 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 17**2 * 16)
    projector = 4 * 2 * (64 * 32 + 32 * 32)
    head = 2 * 32 * vocabulary * first_step["num_targets"]
    flops = 3 * (2 * weights * sum(lengths) + attention + num_tiles * (tile + projector) + head)
    seconds = sum(lengths) / entry["tokens_per_second"]
    assert entry["tflops_per_process"] == pytest.approx(flops / seconds / 1e12, rel=1e-3)
    assert entry["mfu"] == pytest.approx(entry["tflops_per_process"] / 0.5, rel=1e-9)
    assert entry["tiles_per_second"] == pytest.approx(num_tiles / seconds, rel=1e-2)


def test_numbers_do_not_depend_on_how_rows_are_spread(alone, together):
    for run in ("ddp", "ring"):
        for entry, expected in zip(history(together[run]), history(alone["each"]), strict=True):
            for name in (*EXACT, "samples/short", "samples/long", "tokens/short", "tokens/long"):
                assert entry.get(name) == expected.get(name), name
            for name in ("loss", "loss/short", "loss/long", "grad_norm"):
                assert entry.get(name) == pytest.approx(expected.get(name), rel=1e-3), name
            assert entry["tokens_per_second_per_process"] == pytest.approx(entry["tokens_per_second"] / 2, abs=0.1)
            assert "mfu" not in entry


def test_longer_windows_add_up(alone):
    each, pairs = history(alone["each"]), history(alone["pairs"])
    assert len(pairs) == STEPS // 2
    for number, entry in enumerate(pairs):
        parts = each[2 * number : 2 * number + 2]
        for name in ("targets", "tiles", "samples", "samples/short", "tokens/long"):
            assert entry.get(name, 0) == sum(part.get(name, 0) for part in parts)
        assert entry["loss"] == pytest.approx(sum(part["loss"] for part in parts) / 2, rel=1e-6)


def test_the_summary_counts_all_starts(alone, together):
    """A checkpoint between two reports: what was counted before it is in no report of the next start, but in this."""
    names_of_runs = ((alone, "each"), (alone, "pairs"), (alone, "resumed"), (together, "ddp"), (together, "ring"))
    summaries = [json.loads((runs[name] / "summary.json").read_text()) for runs, name in names_of_runs]
    names = ("steps", "rows", "samples", "tokens", "targets", "tiles", "pairs", "bad_steps", "skipped_documents")
    for summary in summaries:
        assert summary["status"] == "finished"
        assert [summary[name] for name in names] == [summaries[0][name] for name in names]
        for name, counts in summary["sources"].items():
            assert counts == pytest.approx(summaries[0]["sources"][name], rel=1e-3)
    logged = history(alone["each"])
    assert summaries[0]["tokens"] == sum(entry["tokens/short"] + entry["tokens/long"] for entry in logged)
    assert summaries[0]["rows"] == 2 * STEPS
    assert [summary["steps_this_start"] for summary in summaries[:3]] == [STEPS, STEPS, 1]
    assert summaries[0]["final_loss"] == logged[-1]["loss"]
    assert summaries[0]["model"] == str(alone["each"])
    log = (alone["each"] / "training_log.txt").read_text()
    assert f"finished at step {STEPS} " in log
    assert re.search(r"short: \d+ samples, \d+ tokens, mean loss \d", log)


def expected_rates(step: int) -> dict[str, float]:
    """By hand, two layers: cosine without warm-up from each group's own rate."""
    factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / STEPS, dtype=torch.float64))).item()
    rates = {"llm": 5e-3, "projector": 1e-3, "vit_embeddings": 2e-3 / 8, "vit_layer_0": 2e-3 / 4, "vit_layer_1": 1e-3}
    return {f"learning_rate/{name}": rate * factor for name, rate in rates.items()}


@pytest.mark.parametrize("run", ["rates", "rates-ddp", "rates-zero2", "rates-own"])
def test_learning_rates_of_groups_are_shown(alone, together, run):
    runs = alone if run == "rates" else together
    for step, entry in enumerate(history(runs[run])):
        shown = {name: value for name, value in entry.items() if name.startswith("learning_rate/")}
        assert shown == pytest.approx(expected_rates(step))
        assert entry["learning_rate"] == shown["learning_rate/llm"]


@pytest.mark.parametrize("run", ["rates-ddp", "rates-zero2", "rates-own"])
def test_groups_train_alike_under_all_engines(alone, together, run):
    losses, expected = ([entry["loss"] for entry in history(path)] for path in (together[run], alone["rates"]))
    assert losses == pytest.approx(expected, abs=1e-4)
    plain = [entry["loss"] for entry in history(alone["each"])]
    assert losses != pytest.approx(plain, abs=1e-4)


def test_adapters_have_groups_too(alone):
    (entry,) = history(alone["lora"])
    assert {name: entry[name] for name in entry if name.startswith("learning_rate/")} == {
        "learning_rate/llm": 5e-3,
        "learning_rate/projector": 1e-3,
    }


def test_one_rate_is_shown_once(alone):
    assert not [name for name in history(alone["each"])[0] if name.startswith("learning_rate/")]


def test_tensorboard_has_the_same_numbers(alone):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((alone["each"] / "runs").iterdir())))
    events.Reload()
    for name in ("loss", "grad_norm", "tokens_per_second", "mfu", "fill_rate", "loss/short", "samples/long"):
        shown = [event.value for event in events.Scalars(f"train/{name}")]
        assert shown == pytest.approx([entry[name] for entry in history(alone["each"])], rel=1e-5)


def test_the_run_is_on_record(alone, two_sources):
    run = json.loads((alone["each"] / "run.json").read_text())
    assert run["arguments"]["training"]["peak_tflops"] == 0.5
    assert run["arguments"]["data"]["meta_path"] == str(two_sources)
    assert set(run["data"]["sources"]) == {"short", "long"}
    assert (run["world_size"], run["launcher"], run["device"]) == (1, "none", "cpu")


def test_a_start_with_other_data_says_so(checkpoint, two_sources, tmp_path):
    """The same number of records, one of them edited: the run may go on, and warns."""
    copy = tmp_path / "data"
    copy.mkdir()
    for path in two_sources.parent.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    runs = [options(max_steps=steps, save_strategy="steps", save_steps=1) for steps in (1, 2)]
    outputs = []
    for changes in runs:
        path = tmp_path / "runs.json"
        path.write_text(json.dumps([flags(checkpoint, copy / "meta.json", tmp_path / "out", **changes)]))
        outputs.append(launch(WORKER, [str(path)], num_processes=1))
        edited = (copy / "long.jsonl").read_text().replace("what?", "which", 1)
        (copy / "long.jsonl").write_text(edited)
    assert [output.returncode for output in outputs] == [0, 0], tail(outputs[-1])
    assert "not what this run was started with" not in outputs[0].stderr
    assert "not what this run was started with: data set 'long': the annotation file" in outputs[1].stderr

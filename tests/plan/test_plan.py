"""The estimator: numbers by hand, directions of every flag, advice, command line."""

import json
import shutil
from dataclasses import fields, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from internvl.errors import ConfigError, ParallelError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.parallel.ring_plan import build_ring_plan
from internvl.plan.__main__ import main
from internvl.plan.cost import (
    count_pairs,
    count_sent,
    decoder_flops,
    describe_row,
    plan_cost,
    prefill_work,
    ring_rows,
    training_work,
    vision_flops,
)
from internvl.plan.memory import model_states, plan_memory
from internvl.plan.search import describe_changes, find_changes, find_fastest, find_gpus, make_plan
from internvl.plan.setting import Setting, check_setting
from internvl.plan.sizes import Trained, extract_sizes, read_sizes

from .test_memory import chat_config

GIB = 2**30
MODEL = read_sizes("InternVL2-2B")
ROW = Setting(max_packed_tokens=32768, tiles=64)


def memory(setting):
    return plan_memory(MODEL, setting)


# ------------------------------------------------------------------------------------------------------------ memory


def test_items_add_up_to_the_largest_phase():
    plan = memory(ROW)
    assert plan.total == max(plan.phases.values()) == plan.phases[plan.phase]


def test_model_states_are_those_of_zero():
    count = 2205754368
    states = {stage: model_states(MODEL, replace(ROW, zero_stage=stage)) for stage in range(4)}
    assert states[0] == (2 * count, 2 * count, 12 * count)
    assert states[1] == (2 * count, 2 * count, 12 * count // 8)
    assert states[2] == (2 * count, count // 4, 12 * count // 8)
    assert states[3] == (count // 4, count // 4, 12 * count // 8)


def test_float32_without_zero_has_no_master_weights():
    count = 2205754368
    single = replace(ROW, gpus=1, dtype="float32", zero_stage=0)
    assert model_states(MODEL, single) == (4 * count, 4 * count, 8 * count)


def test_adapters_need_hardly_any_gradients():
    weights, gradients, optimizer = model_states(
        MODEL, replace(ROW, trained=Trained(use_llm_lora=16, freeze_backbone=True, freeze_mlp=True))
    )
    assert gradients < weights / 100
    assert optimizer < weights / 100


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 2},
        {"zero_stage": 3, "gpus": 32},
        {"chunk_num": 2},
        {"grad_checkpoint": True},
        {"vit_batch_size": 8},
        {"zero_stage": 2, "offload_optimizer": True},
        {"max_packed_tokens": 16384},
        {"tiles": 8},
        {"trained": Trained(freeze_backbone=True)},
        {"trained": Trained(freeze_llm=True)},
        {"trained": Trained(use_llm_lora=16, freeze_backbone=True)},
    ],
)
def test_every_saving_saves(changes):
    assert memory(replace(ROW, **changes)).total < memory(ROW).total


@pytest.mark.parametrize("changes", [{"offload_activations": True}, {"mlp_tile_tokens": 2048}])
def test_savings_under_recomputation_save(changes):
    again = replace(ROW, grad_checkpoint=True, max_packed_tokens=131072)
    assert memory(replace(again, **changes)).total < memory(again).total


def test_tiles_of_the_mlp_bound_what_it_needs():
    again = replace(ROW, grad_checkpoint=True, max_packed_tokens=131072)
    phase, wide = "decoder backward", 2 * 8192
    saved = memory(again).phases[phase] - memory(replace(again, mlp_tile_tokens=1024)).phases[phase]
    assert saved == (131072 - 1024) * 5 * wide  # gate, up, the input of w2 and two gradients


def test_kept_attention_costs_its_output_and_log_sum_exp():
    shared = replace(ROW, grad_checkpoint=True, chunk_num=4)
    kept = memory(replace(shared, keep_attention=True))
    per_token = 24 * (2 * 2048 + 4 * 16)
    key = "decoder activations"
    assert kept.items[key] - memory(shared).items[key] == per_token * 32768 // 4


def test_offloading_moves_bytes_to_main_memory():
    assert memory(replace(ROW, zero_stage=2, offload_optimizer=True)).host == 12 * 2205754368 // 8
    offloaded = replace(ROW, offload_activations=True, grad_checkpoint=True)
    assert memory(offloaded).host == 22 * 2 * (2048 * 32768 + 64 * 1025 * 1024)
    assert memory(ROW).host == 0


def test_nothing_is_kept_for_a_decoder_without_gradient():
    only_head = Trained(freeze_backbone=True, freeze_mlp=True, freeze_llm=True, unfreeze_lm_head=True)
    plan = memory(replace(ROW, trained=only_head))
    assert plan.phase == "loss"
    assert plan.items["decoder activations"] == plan.items["vision activations"] == 0


def test_kv_cache_is_shared_and_shrinks():
    prompt = Setting(mode="infer", max_packed_tokens=1048576, max_new_tokens=0, gpus=8)
    whole = 24 * 2 * 8 * 128 * 2 * 1048576
    assert memory(prompt).items["KV cache"] == whole
    assert memory(replace(prompt, chunk_num=8)).items["KV cache"] == whole // 8
    assert memory(replace(prompt, kv_cache="quantized")).items["KV cache"] == whole // 2
    assert memory(replace(prompt, kv_cache="offloaded")).items["KV cache"] == whole // 12
    assert memory(replace(prompt, prefill_chunk_size=8192)).total < memory(prompt).total


# -------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("family", ["internlm2", "qwen2", "phi3"])
def test_forward_flops_are_those_that_torch_counts(family):
    """Torch counts whole squares of scores, so attention is compared by hand."""
    config = chat_config(family)
    model, sizes = InternVLChatModel(config).eval(), extract_sizes("tiny", config)
    tokens, tiles = 32, 3
    ids = torch.full((1, tokens), 7)
    ids[:, : tiles * sizes.num_image_token] = 61
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, pixel_values=torch.randn(tiles, 3, 28, 28), use_cache=False)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    scores = sum(flops for op, flops in counted.items() if "attention" in op)
    setting = Setting(max_packed_tokens=tokens, tiles=tiles)
    matrices, attention = decoder_flops(sizes, describe_row(setting))
    tower, projector = vision_flops(sizes, describe_row(setting))
    tower_scores = tiles * sizes.vision.num_layers * 4 * 17**2 * 32
    head = 2 * tokens * sizes.decoder.table
    assert sum(counted.values()) - scores == matrices + tower + projector + head - tower_scores
    assert attention == 2 * 4 * sizes.decoder.query_width * tokens * (tokens + 1) / 2


def test_work_of_training_counts_what_is_needed_and_recomputed():
    sizes = extract_sizes("tiny", chat_config())
    setting = Setting(max_packed_tokens=64, tiles=3, gpus=1)
    forward = sum(prefill_work(sizes, setting).items[name] for name in ("decoder", "attention", "vision"))
    head = 2 * 64 * sizes.decoder.table
    plain = training_work(sizes, setting)
    assert plain.model == pytest.approx(3 * (forward + head))
    _, attention = decoder_flops(sizes, describe_row(setting))
    assert plain.executed == pytest.approx(plain.model + 0.5 * attention)
    again = training_work(sizes, replace(setting, grad_checkpoint=True))
    projector = vision_flops(sizes, describe_row(setting))[1]
    assert again.executed - plain.executed == pytest.approx(forward - projector)
    assert again.model == plain.model
    frozen = training_work(sizes, replace(setting, trained=Trained(freeze_backbone=True, freeze_mlp=True)))
    assert frozen.items["vision"] == pytest.approx(plain.items["vision"] / 3)
    adapted = training_work(sizes, replace(setting, trained=Trained(use_llm_lora=2)))
    assert adapted.items["decoder"] == pytest.approx(plain.items["decoder"] * 2 / 3)


def test_documents_make_attention_cheaper():
    assert count_pairs(8, 1) == 36
    assert count_pairs(8, 4) == 12


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ring_formula_counts_the_rows_that_the_ring_sends(size):
    length = 64
    sent = [
        sum(build_ring_plan([0, length], num_tokens=length // size, rank=rank, size=size).count_sent_rows())
        for rank in range(size)
    ]
    mean, most = ring_rows(length, size)
    assert (sum(sent) / size, max(sent)) == (mean, most)


def test_messages_by_hand():
    setting = Setting(max_packed_tokens=65536, gpus=8, chunk_num=8, ulysses_degree=2, zero_stage=3)
    sent = count_sent(MODEL, setting)
    rows, kv_heads = 65536 * 3 // 4, 8 // 2
    assert sent["ring"] == 24 * rows * 2 * kv_heads * 128 * 2 * 3
    assert sent["ulysses"] == 24 * 8192 * (2 * 16 + 2 * 8) * 128 * 2 / 2 * 2
    assert sent["weights"] == 2 * 2 * 2205754368 * 7 / 8
    assert sent["gradients"] == 2 * 2205754368 * 7 / 8
    again = replace(setting, grad_checkpoint=True)
    assert count_sent(MODEL, again)["ring"] == sent["ring"] * 4 / 3
    assert count_sent(MODEL, replace(again, keep_attention=True))["ring"] == sent["ring"]
    one = count_sent(MODEL, Setting(gpus=1))
    assert sum(one.values()) == 0


def test_messages_of_a_prefill_by_hand():
    prompt = Setting(mode="infer", max_packed_tokens=4096, chunk_num=4, prefill_chunk_size=1024)
    sent = count_sent(MODEL, prompt)
    assert sent["ring"] == 24 * 1024 * 3 // 4 * 2 * 1024 * 2
    assert sent["queries"] == 24 * (3072 // 4) * 3 * 2048 * 2
    assert sent["partial results"] == 24 * (3072 // 4) * 3 * 4 * (2048 + 16)
    whole = count_sent(MODEL, replace(prompt, prefill_chunk_size=None))
    assert whole["queries"] == 0
    assert whole["ring"] == 4 * sent["ring"]


def test_time_follows_the_given_rates():
    slow, fast = (plan_cost(MODEL, replace(ROW, tflops=rate, bandwidth_gbs=rate)) for rate in (100.0, 200.0))
    assert slow.compute_s == 2 * fast.compute_s
    assert slow.communication_s == 2 * fast.communication_s
    assert slow.flops_rank == pytest.approx(slow.compute_s * 1e14)


def test_ranks_of_a_group_share_the_work_of_a_row():
    alone, shared = plan_cost(MODEL, ROW), plan_cost(MODEL, replace(ROW, chunk_num=4))
    assert shared.flops_rank == alone.flops_rank / 4
    assert shared.tokens_step == alone.tokens_step / 4


# ------------------------------------------------------------------------------------------------------------ advice


def test_advice_fits_and_no_smaller_set_of_flags_does():
    plan = make_plan(MODEL, ROW)
    assert not plan.fits
    advice = find_changes(MODEL, ROW)
    assert all(other.fits for other in advice)
    texts = [describe_changes(ROW, other.setting) for other in advice]
    assert "--grad_checkpoint True" in texts
    names = [frozenset(text.split()[::2]) for text in texts]
    assert not any(a < b for a in names for b in names)
    assert [len(flags) for flags in names] == sorted(len(flags) for flags in names)


def test_a_setting_that_fits_needs_no_change():
    setting = replace(ROW, grad_checkpoint=True)
    assert make_plan(MODEL, setting).fits
    assert describe_changes(setting, find_changes(MODEL, setting)[0].setting) == ""


def test_more_gpus_are_found_where_flags_do_not_help():
    setting = replace(ROW, gpus=1, max_packed_tokens=1048576, gpu_memory_gib=40.0)
    assert find_changes(MODEL, setting) == []
    larger = find_gpus(MODEL, setting)
    assert larger.fits
    assert larger.setting.gpus > 1


def test_fastest_setting_fits_and_nothing_is_offloaded_without_need():
    plan = find_fastest(MODEL, replace(ROW, max_packed_tokens=131072, tiles=256))
    assert plan.fits
    assert not plan.setting.offload_optimizer
    assert find_fastest(MODEL, replace(ROW, gpus=1, gpu_memory_gib=9.0)) is None


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"chunk_num": 3}, "--chunk_num"),
        ({"chunk_num": 4, "ulysses_degree": 3}, "--ulysses_degree"),
        ({"zero_stage": 4}, "--zero_stage"),
        ({"gpus": 0}, "--gpus"),
        ({"max_packed_tokens": -5}, "--max_packed_tokens"),
        ({"vit_batch_size": 0}, "--vit_batch_size"),
        ({"supervised": 1.5}, "--supervised"),
        ({"keep_attention": True}, "--keep_attention"),
        ({"keep_attention": True, "grad_checkpoint": True}, "--chunk_num"),
        ({"offload_activations": True}, "--grad_checkpoint"),
        ({"offload_optimizer": True}, "--zero_stage"),
        ({"mlp_tile_tokens": 0}, "--mlp_tile_tokens"),
        ({"reserve_gib": 90.0}, "--reserve_gib"),
        ({"tflops": 0.0}, "--tflops"),
        ({"documents": 40000}, "--documents"),
        ({"kv_cache": "huge"}, "--kv_cache"),
        ({"tiles": 1000}, "--tiles"),
        ({"chunk_num": 32, "gpus": 32, "ulysses_degree": 32}, "--ulysses_degree"),
    ],
)
def test_wrong_flags_are_named(changes, flag):
    with pytest.raises((ConfigError, ParallelError), match=flag):
        check_setting(MODEL, replace(ROW, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_llm_lora": -1},
        {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True},
    ],
)
def test_wrong_choices_of_weights_are_named(changes):
    with pytest.raises(ConfigError, match=f"--{next(iter(changes))}"):
        Trained(**changes)


def test_command_prints_a_table_of_items(capsys):
    assert main(["--grad_checkpoint", "True", "--tiles", "64"]) == 0
    out = capsys.readouterr().out
    assert "optimizer states" in out
    assert "not measured" in out
    assert out.rstrip().endswith("fits")


def test_command_says_what_to_change(capsys):
    assert main(["--tiles", "64"]) == 1
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out
    assert "--grad_checkpoint True" in out


def test_json_holds_the_same(capsys):
    assert main(["--tiles", "64", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["memory"]["total"] == memory(ROW).total
    assert record["fits"] is record["measured"] is False
    assert "--grad_checkpoint True" in [change["flags"] for change in record["changes"]]


def test_a_checkpoint_folder_or_its_config_can_be_given(tmp_path, capsys):
    config = chat_config("qwen2")
    config.save_pretrained(tmp_path / "model")
    shutil.copy(tmp_path / "model/config.json", tmp_path / "config.json")
    texts = []
    for path in (tmp_path / "model", tmp_path / "config.json"):
        assert main(["--model", str(path), "--max_packed_tokens", "64", "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out))
    assert texts[0]["parameters"] == texts[1]["parameters"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--model", "InternVL2-3B"], "InternVL2-2B"),
        (["--gpus", "8", "--chunk_num", "5"], "--chunk_num 5"),
        (["--unfreeze_vit_layers", "30", "--freeze_backbone"], "--unfreeze_vit_layers 30"),
    ],
)
def test_user_errors_are_one_line(argv, text, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


def test_markdown_table_has_a_row_per_case(capsys, monkeypatch):
    monkeypatch.setattr("internvl.plan.report._TABLE_TOKENS", (32768, 1048576))
    assert main(["--table"]) == 0
    out = capsys.readouterr().out
    assert "not measured" in out
    rows = [line for line in out.splitlines() if line.startswith("| InternVL2")]
    assert len(rows) == 2 * 2 * 2
    columns = next(line for line in out.splitlines() if line.startswith("| model")).count("|")
    assert {row.count("|") for row in rows} == {columns}


def test_every_option_has_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for entry in fields(Setting):
        assert entry.name == "trained" or entry.metadata["help"]
        assert entry.name == "trained" or f"--{entry.name} " in text

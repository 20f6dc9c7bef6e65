import pytest
import torch
from transformers import Trainer, get_scheduler

from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.train.arguments import ModelArguments
from internvl.train.parameter_groups import LearningRates, apply_schedule, build_parameter_groups
from internvl.train.trainable import select_trainable

BASE, DECAY = 1e-3, 0.05


@pytest.fixture
def model(checkpoint):
    return InternVLChatModel.from_pretrained(checkpoint)


def build(model, **rates):
    decayed = Trainer.get_decay_parameter_names(None, model)
    return build_parameter_groups(model, LearningRates(BASE, **rates), decayed=decayed, weight_decay=DECAY)


def read_settings(model, groups):
    """name -> (lr, weight decay) of every parameter; every parameter that trains is in one group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[parameter] not in settings
            settings[names[parameter]] = (group["lr"], group["weight_decay"])
    assert settings.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return settings


def test_layers_of_the_tower_decay_towards_the_embeddings(model):
    """Two layers: the last one has rate ** 1, the first one rate ** 2, the embeddings rate ** 3."""
    settings = read_settings(model, build(model, vision=1e-2, vit_decay=0.5))
    rates = {name: lr for name, (lr, _) in settings.items()}
    expected = {"encoder.layers.1.": 1e-2 * 0.5, "encoder.layers.0.": 1e-2 * 0.5**2, "embeddings.": 1e-2 * 0.5**3}
    for prefix, rate in expected.items():
        of_layer = [lr for name, lr in rates.items() if name.startswith(f"vision_model.{prefix}")]
        assert of_layer
        assert of_layer == [pytest.approx(rate)] * len(of_layer)
    others = {lr for name, lr in rates.items() if not name.startswith("vision_model.")}
    assert others == {BASE}


def test_parts_have_rates_of_their_own(model):
    settings = read_settings(model, build(model, vision=1e-5, projector=1e-2))
    by_part = {part: {lr for name, (lr, _) in settings.items() if name.startswith(part)} for part in ("vision", "mlp1")}
    assert by_part == {"vision": {1e-5}, "mlp1": {1e-2}}
    assert settings["language_model.output.weight"] == (BASE, DECAY)


@pytest.mark.parametrize("rates", [{}, {"projector": 1e-2, "vit_decay": 0.9}])
def test_norms_and_biases_do_not_decay(model, rates):
    settings = read_settings(model, build(model, **rates))
    assert settings["language_model.model.norm.weight"][1] == 0
    assert settings["language_model.model.layers.0.attention_norm.weight"][1] == 0
    assert settings["vision_model.encoder.layers.0.norm1.weight"][1] == 0
    assert settings["mlp1.1.bias"][1] == 0
    assert settings["mlp1.1.weight"][1] == DECAY
    assert settings["vision_model.encoder.layers.0.mlp.fc1.weight"][1] == DECAY
    undecayed = [name for name, (_, decay) in settings.items() if decay == 0]
    assert all("norm" in name or "bias" in name or name == "mlp1.0.weight" for name in undecayed)


def test_one_rate_makes_the_groups_of_transformers(model):
    decayed = Trainer.get_decay_parameter_names(None, model)
    with_decay, without = build(model)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (DECAY, 0.0)
    expected = [parameter for name, parameter in model.named_parameters() if name in decayed]
    assert len(with_decay["params"]) == len(expected)
    assert all(got is wanted for got, wanted in zip(with_decay["params"], expected, strict=True))
    assert {with_decay["name"], without["name"]} == {"all"}


def test_the_first_group_is_the_decoder_where_it_trains(model):
    assert build(model, vit_decay=0.9)[0]["name"] == "llm"
    names = [group["name"] for group in build(model, vit_decay=0.9, projector=1.0)]
    assert list(dict.fromkeys(names)) == ["llm", "projector", "vit_embeddings", "vit_layer_0", "vit_layer_1"]


@pytest.mark.parametrize(
    "args",
    [
        {"freeze_llm": True},
        {"freeze_backbone": True},
        {"freeze_backbone": True, "unfreeze_vit_layers": -1, "freeze_llm": True},
        {"use_llm_lora": 2, "use_backbone_lora": 2},
    ],
)
def test_frozen_parts_and_adapters(model, args):
    select_trainable(model, ModelArguments(**args))
    settings = read_settings(model, build(model, projector=1e-2, vit_decay=0.5))
    adapters = {name: lr for name, (lr, _) in settings.items() if "layers.0.attn.qkv.lora_A" in name}
    assert set(adapters.values()) <= {BASE * 0.5**2}
    assert bool(adapters) == ("use_backbone_lora" in args)


def test_tied_weights_are_in_one_group(model):
    model.language_model.output.weight = model.language_model.model.tok_embeddings.weight
    settings = read_settings(model, build(model, vit_decay=0.5))
    assert "language_model.model.tok_embeddings.weight" in settings


def test_an_optimiser_takes_the_groups(model):
    optimizer = torch.optim.AdamW(build(model, vit_decay=0.5), lr=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {BASE, BASE * 0.5, BASE * 0.25, BASE * 0.125}


SCHEDULES = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {},
    "polynomial": {},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


def make_schedule(name, *, num_steps, rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.AdamW(groups)
    options = {"scheduler_specific_kwargs": SCHEDULES[name]} if SCHEDULES[name] else {}
    return optimizer, get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=num_steps, **options)


def take_steps(optimizer, scheduler, count):
    """Learning rates of each of the steps."""
    rates = []
    for _ in range(count):
        assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr()
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    return rates


def go_on(name, *, before, after, num_steps, rates=(0.1, 0.02), new_rates=None):
    """Rates after step 4 of a run of `before` steps that goes on as one of `after` steps, and those of a whole run."""
    optimizer, scheduler = make_schedule(name, num_steps=before, rates=rates)
    take_steps(optimizer, scheduler, num_steps)
    saved = optimizer.state_dict(), scheduler.state_dict()
    new_rates = new_rates or rates
    optimizer, scheduler = make_schedule(name, num_steps=after, rates=new_rates)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    apply_schedule(scheduler, new_rates)
    whole = take_steps(*make_schedule(name, num_steps=after, rates=new_rates), after)
    return take_steps(optimizer, scheduler, after - num_steps), whole[num_steps:]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_made_longer_has_the_rates_of_the_longer_schedule_from_its_first_step_on(name):
    found, expected = go_on(name, before=4, after=9, num_steps=4)
    assert found == expected


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_goes_on_unchanged_keeps_its_rates_bit_for_bit(name):
    found, expected = go_on(name, before=9, after=9, num_steps=4)
    assert found == expected


def test_another_learning_rate_counts_from_the_next_step_on():
    found, expected = go_on("cosine", before=9, after=9, num_steps=4, new_rates=(0.05, 0.01))
    assert found == expected


def test_a_schedule_of_another_kind_is_left_alone():
    optimizer, _ = make_schedule("linear", num_steps=4, rates=(0.1,))
    apply_schedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), [0.2])
    apply_schedule(None, [0.2])
    assert optimizer.param_groups[0]["lr"] == 0.0

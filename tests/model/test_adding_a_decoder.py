"""A decoder is added as docs/decisions/adding_a_decoder.md says: with its line, and nothing else."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from internvl.model.configuration_internvl_chat import DECODER_CONFIGS, InternVLChatConfig
from internvl.model.errors import ConfigError
from internvl.model.loading import load_strictly
from internvl.model.modeling_internvl_chat import InternVLChatModel

from .tiny import VISUAL, document, tiny_config

PAGE = (Path(__file__).parents[2] / "docs/decisions/adding_a_decoder.md").read_text()
[LINE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FIELDS = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
[FAMILY] = FIELDS["architectures"]


@pytest.fixture
def model(monkeypatch):
    name, config_class = re.fullmatch(r'"(\w+)": (\w+),\n', LINE).groups()
    assert name not in DECODER_CONFIGS
    monkeypatch.setitem(DECODER_CONFIGS, name, getattr(transformers, config_class))
    torch.manual_seed(0)
    config = InternVLChatConfig(
        vision_config=tiny_config().vision_config, llm_config=FIELDS, ps_version="v2", img_context_token_id=VISUAL
    )
    return InternVLChatModel(config).eval()


@pytest.fixture
def row():
    ids, pixels = document(1)
    return {"input_ids": ids.unsqueeze(0), "pixel_values": pixels}


def test_the_documented_decoder_is_one_line_and_unknown_without_it():
    assert len(LINE.splitlines()) == 1
    with pytest.raises(ConfigError, match=f"architectures.0. is '{FAMILY}'; supported: InternLM2ForCausalLM, Llama"):
        InternVLChatConfig(llm_config=FIELDS)


def test_ordinary_positions_are_those_of_its_own_class(model):
    ids, _ = document(0, tiles=(), text=40)
    twin = getattr(transformers, FAMILY)(type(model.language_model.config)(**FIELDS)).eval()
    state = model.language_model.state_dict()
    twin.load_state_dict({name.replace("rotary_emb.native", "rotary_emb"): weight for name, weight in state.items()})
    ours = model(input_ids=ids.unsqueeze(0)).logits
    torch.testing.assert_close(ours, twin(input_ids=ids.unsqueeze(0)).logits, rtol=1e-4, atol=1e-4)


def test_logits_depend_on_fractional_positions_by_their_differences_alone(model, row):
    kwargs = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.25}
    positions = model.build_positions(row["input_ids"], **kwargs)
    assert bool((positions % 1 != 0).any())
    fractional = model(**row, **kwargs).logits
    shifted = model(**row, position_ids=positions + 0.375).logits
    torch.testing.assert_close(shifted, fractional, rtol=1e-4, atol=1e-4)
    for other in (model(**row, position_ids=positions.round()), model(**row, position_ids=2 * positions)):
        assert (other.logits - fractional).abs().max() > 1e-2


def test_it_trains_on_fractional_positions_and_answers_from_its_saved_folder(model, row, tmp_path):
    kwargs = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.25}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**row, **kwargs, labels=row["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.save_pretrained(tmp_path)
    again = load_strictly(InternVLChatModel, tmp_path)
    answers = [m.generate(**row, **kwargs, max_new_tokens=4, do_sample=False, pad_token_id=0) for m in (model, again)]
    assert answers[0].shape == (1, 4)
    assert torch.equal(*answers)

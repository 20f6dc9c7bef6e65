"""What a group of one rank shows already; groups of several are in tests/distributed/test_context_parallel.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl.errors import ConfigError
from internvl.infer.context_parallel import ContextParallel, ShardedCache, build_context_parallel, split_images
from internvl.infer.session import Session
from internvl.parallel.cached_attention import count_shard_tokens
from tests.model.test_language_models import NEVER, build
from tests.model.tiny import VISUAL, document

ALONE = ContextParallel(None)


@given(tiles=st.lists(st.integers(1, 13), max_size=12), size=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_images_are_dealt_out_whole_and_in_order(tiles, size):
    shares = split_images(tiles, size)
    assert len(shares) == size
    assert [image for share in shares for image in share] == list(range(len(tiles)))
    # Nobody has more than a fair share and the halves of the images that lie across its ends.
    loads = [sum(tiles[share.start : share.stop]) for share in shares]
    assert max(loads, default=0) <= sum(tiles) / size + max(tiles, default=0)


def test_images_go_where_their_middle_lies():
    assert split_images([4, 1, 1, 4, 2], 3) == [range(1), range(1, 3), range(3, 5)]


@pytest.fixture(scope="module")
def model():
    return build("InternLM2ForCausalLM")


@pytest.fixture
def arguments():
    ids, pixels = document(3, tiles=(2, 1))
    return {
        "input_ids": ids.unsqueeze(0), "pixel_values": pixels, "max_new_tokens": 6, "do_sample": False,
        "suppress_tokens": NEVER, "rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 0.3,
    }  # fmt: skip


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("given", ["pixel_values", "visual_features", "image_flags", "position_ids"])
def test_every_way_to_give_a_prompt_gives_the_same_answer(model, arguments, chunk, given):
    expected = model.generate(**arguments)
    pixels = arguments["pixel_values"]
    if given == "visual_features":
        arguments |= {"pixel_values": None, "visual_features": model.extract_feature(pixels)}
    elif given == "image_flags":
        arguments |= {"pixel_values": torch.cat([pixels, pixels[:1]]), "image_flags": torch.tensor([1, 1, 1, 0])}
    elif given == "position_ids":
        positions = model.build_positions(
            arguments["input_ids"], rope_pos_id_version="v2pe_fix", rope_pos_id_stride=0.3
        )
        arguments |= {"position_ids": positions, "rope_pos_id_version": None, "rope_pos_id_stride": None}
    found = model.generate(**arguments, prefill_chunk_size=chunk, context_parallel=ALONE)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.ones(2, 5, dtype=torch.long)}, "one prompt at a time"),
        ({"attention_mask": torch.tensor([[0, *[1] * 30]])}, "takes no padding"),
        ({"num_beams": 2}, "num_beams is more than 1"),
        ({"kv_cache": "quantized"}, "take dynamic or static"),
        ({"max_new_tokens": None}, "needs max_new_tokens"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size must be"),
        ({"use_cache": False}, "leave use_cache out"),
        ({"max_time": 1.0}, "leave max_time out"),
        ({"input_ids": torch.tensor([[5, VISUAL]])}, "ends with a visual token"),
    ],
)
def test_what_cannot_be_shared_is_refused(model, arguments, change, message):
    with pytest.raises(ConfigError, match=message):
        model.generate(**{**arguments, **change}, context_parallel=ALONE)


@pytest.mark.parametrize("tiles", [0, 2])
def test_another_number_of_visual_tokens_is_an_error(model, arguments, tiles):
    arguments["pixel_values"] = arguments["pixel_values"][:tiles] if tiles else None
    with pytest.raises(ValueError, match="the text has 12 visual tokens"):
        model.generate(**arguments, context_parallel=ALONE)


def test_the_usual_attention_is_back_after_an_error(model, arguments):
    expected = model.generate(**arguments)
    with pytest.raises(ValueError, match="temperature"):
        model.generate(**{**arguments, "do_sample": True, "temperature": -1.0}, context_parallel=ALONE)
    assert torch.equal(model.generate(**arguments), expected)


@given(
    chunks=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    num_new=st.integers(1, 9),
    size=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_a_static_share_has_room_for_its_part_of_any_prompt(chunks, num_new, size):
    length = sum(chunks) + 1
    for rank in range(size):
        cache = ShardedCache(rank=rank, size=size, name="static", max_length=length + num_new, num_chunks=len(chunks))
        held = 0
        for cache.chunk_length in [*chunks, *[None] * num_new]:
            padded = 2 * size * -(-(cache.chunk_length or 1) // (2 * size)) // size
            states = torch.zeros(1, 1, max(padded, 1), 2)
            keys, _ = cache.update(states, states, 0)
            held += (
                count_shard_tokens(cache.chunk_length, rank=rank, size=size)
                if cache.chunk_length
                else int((cache.num_tokens - 1) % size == rank)
            )
            assert keys.shape[2] == held
        assert cache.get_seq_length() == length - 1 + num_new


def test_a_session_answers_the_same(session, make_image):
    images = [make_image("a.png", 56), make_image("b.png", seed=1)]
    together = Session(session.model, session.tokenizer, context_parallel=ALONE, prefill_chunk_size=20)
    expected = session.answer("<image> and <image>?", images, max_new_tokens=6)
    found = together.answer("<image> and <image>?", images, max_new_tokens=6)
    assert (found.text, found.num_tiles, found.num_prompt_tokens) == (
        expected.text,
        expected.num_tiles,
        expected.num_prompt_tokens,
    )
    assert together.answer("and?", max_new_tokens=6).text == session.answer("and?", max_new_tokens=6).text


def test_a_session_refuses_caches_that_cannot_be_shared(session):
    with pytest.raises(ConfigError, match="take dynamic or static"):
        Session(session.model, session.tokenizer, context_parallel=ALONE, kv_cache="offloaded")


def test_chat_takes_it_in_its_generation_config(session):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = session.model.chat(session.tokenizer, pixels, "what?", options)
    assert session.model.chat(session.tokenizer, pixels, "what?", {**options, "context_parallel": ALONE}) == expected


def test_without_processes_a_group_is_this_one():
    assert build_context_parallel(1).size == 1

"""`chat` and `batch_chat` on a tiny checkpoint with a real tokenizer."""

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer
from transformers.utils import ModelOutput

from internvl.model.errors import ConfigError
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.model.visual_features import pixel_shuffle
from internvl.tools.make_tiny import TinySpec, make_checkpoint

GENERATION = {"max_new_tokens": 6, "do_sample": False}
V2PE = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 1 / 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("chat") / "tiny"
    make_checkpoint(out, TinySpec(linear_std=0.3))
    return out


@pytest.fixture(scope="module")
def model(folder):
    return InternVLChatModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def tiles(count, seed=0):
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("positions", [{}, V2PE])
def test_batch_chat_answers_like_chat(model, tokenizer, positions):
    """Unequal prompts with two, no and one image."""
    questions = ["<image> and <image>: which is red?", "What is the color of the sky at night?", "Which digit?"]
    pixel_values, patches, counts = tiles(6), [2, 1, 3], [2, 0, 1]
    together = model.batch_chat(
        tokenizer, pixel_values, questions, GENERATION, patches, image_counts=counts, **positions
    )
    alone = [
        model.chat(tokenizer, pixel_values[:3], questions[0], GENERATION, num_patches_list=[2, 1], **positions),
        model.chat(tokenizer, None, questions[1], GENERATION, **positions),
        model.chat(tokenizer, pixel_values[3:], questions[2], GENERATION, num_patches_list=[3], **positions),
    ]
    assert together == alone
    assert len(set(alone)) == 3


def test_strides_change_answers(model, tokenizer):
    ask = lambda **positions: model.chat(tokenizer, tiles(40), "Which digit?", GENERATION, **positions)  # noqa: E731
    assert ask() == ask(rope_pos_id_version="default")
    assert ask() != ask(**V2PE)


def test_history_and_images_of_earlier_turns(model, tokenizer):
    config = dict(GENERATION)
    answer, history = model.chat(tokenizer, tiles(1), "Which fruit?", config, return_history=True)
    assert history == [("<image>\nWhich fruit?", answer)]
    second, history = model.chat(
        tokenizer,
        tiles(3),
        "And <image>?",
        config,
        history=history,
        num_patches_list=[1, 2],
        return_history=True,
        **V2PE,
    )
    assert [question for question, _ in history] == ["<image>\nWhich fruit?", "And <image>?"]
    assert isinstance(second, str)
    assert config == GENERATION


def test_a_saved_stride_is_the_default_of_evaluation(folder, tokenizer, tmp_path):
    model = InternVLChatModel.from_pretrained(folder)
    asked = model.chat(tokenizer, tiles(40), "Which digit?", GENERATION, **V2PE)
    model.config.rope_pos_id_version, model.config.rope_pos_id_stride = "v2pe_fix", 1 / 16
    model.save_pretrained(tmp_path)
    again = InternVLChatModel.from_pretrained(tmp_path)
    assert again.chat(tokenizer, tiles(40), "Which digit?", GENERATION) == asked


def test_special_tokens_in_a_question_are_text(model, tokenizer):
    seen = []
    hook = model.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model.chat(tokenizer, None, "What is <IMG_CONTEXT> and <img></img> and <|im_end|>?", {"max_new_tokens": 1})
    hook.remove()
    assert seen[0] > 30  # every marker became several ordinary tokens


@pytest.mark.parametrize(
    ("question", "patches", "message"),
    [
        ("<image><image><image> which?", [1, 1], "3 <image> placeholders for 2 images"),
        ("<image> which?", [1, 1], "1 <image> placeholders for 2 images"),
        ("<image><image> which?", [1, 2], "adds up to 3 tiles, pixel_values has 2"),
    ],
)
def test_counts_must_fit(model, tokenizer, question, patches, message):
    with pytest.raises(ValueError, match=message):
        model.chat(tokenizer, tiles(2), question, GENERATION, num_patches_list=patches)
    with pytest.raises(ValueError, match="must fit together"):
        model.batch_chat(tokenizer, tiles(2), [question], GENERATION, patches, image_counts=[1, 1])


def test_streaming_and_sampling_go_through_generate(model, tokenizer):
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    answer = model.chat(tokenizer, tiles(1), "Which fruit?", {**GENERATION, "streamer": streamer})
    assert "".join(streamer).strip() == answer
    sampled = {"max_new_tokens": 8, "do_sample": True, "temperature": 2.0}
    torch.manual_seed(0)
    texts = {model.chat(tokenizer, tiles(1), "Which fruit?", sampled) for _ in range(4)}
    assert len(texts) > 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_positions_of_the_wrong_length_are_refused(model, dtype):
    ids = torch.tensor([[1, 5, 6]])
    for length in (2, 40):
        positions = torch.arange(length, dtype=dtype).unsqueeze(0)
        with pytest.raises(ValueError, match=f"{length} positions for 3 tokens"):
            model(input_ids=ids, position_ids=positions)
        with pytest.raises(ValueError, match=f"{length} positions for 3 tokens"):
            model.generate(input_ids=ids, position_ids=positions, max_new_tokens=2)
    with pytest.raises(ValueError, match="2 rows for 1"):
        model(input_ids=ids, position_ids=torch.arange(3, dtype=dtype).expand(2, -1))
    one_row = torch.arange(3, dtype=dtype)
    assert torch.equal(model(input_ids=ids, position_ids=one_row).logits, model(input_ids=ids).logits)


def test_pixel_shuffle_v1_is_v2_transposed():
    grid = torch.randn(2, 4, 4, 3)
    second = pixel_shuffle(grid, 0.5, "v2")
    assert second.shape == (2, 2, 2, 12)
    assert torch.equal(second[0, 1, 0], torch.cat([grid[0, 2, 0], grid[0, 2, 1], grid[0, 3, 0], grid[0, 3, 1]]))
    assert torch.equal(pixel_shuffle(grid, 0.5, "v1"), second.transpose(1, 2))


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_a_tokenizer_without_image_tokens_is_refused(model, unknown):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "which": 1, "digit": 2}, unk_token="<unk>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown)
    before = model.img_context_token_id
    with pytest.raises(ConfigError, match="does not know <IMG_CONTEXT>"):
        model.chat(bare, tiles(1), "which digit", {"max_new_tokens": 1})
    assert model.img_context_token_id == before


@pytest.mark.parametrize("place", ["answer", "system message"])
def test_an_image_placeholder_outside_of_questions_is_text(model, tokenizer, place):
    said = {"answer": "An <image>.", "system message": "Look at <image>."}[place]
    history = [("<image>\nWhat is it?", said if place == "answer" else "A digit.")]
    options = {"system_message": said} if place == "system message" else {}
    answer = model.chat(tokenizer, tiles(1), "Which?", GENERATION, history=history, num_patches_list=[1], **options)
    assert isinstance(answer, str)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, set()),
        ({"output_scores": True}, {"scores"}),
        ({"output_logits": True}, {"logits"}),
        ({"output_attentions": True}, {"attentions"}),
        ({"output_hidden_states": True}, {"hidden_states"}),
        ({"num_beams": 2, "output_scores": True}, {"scores", "sequences_scores", "beam_indices"}),
    ],
)
def test_the_whole_output_of_generate_comes_with_the_answers(model, tokenizer, options, fields):
    options = GENERATION | options
    output = model.chat(tokenizer, tiles(1), "Which?", options | {"return_dict_in_generate": True})
    assert isinstance(output, ModelOutput)
    assert set(output) == {"sequences", "past_key_values", "answers"} | fields
    assert output["answers"] == [model.chat(tokenizer, tiles(1), "Which?", options)]


def test_several_answers_of_one_question(model, tokenizer):
    beams = GENERATION | {"num_beams": 3, "num_return_sequences": 3}
    answers, history = model.chat(tokenizer, tiles(1), "Which?", beams, return_history=True)
    assert len(set(answers)) == 3
    assert history == [("<image>\nWhich?", answers[0])]
    two = model.batch_chat(tokenizer, tiles(2), ["Which?", "What?"], beams)
    assert two[:3] == answers
    assert len(two) == 6
    with pytest.raises(ValueError, match="num_return_sequences"):
        model.chat(tokenizer, tiles(1), "Which?", GENERATION | {"num_return_sequences": 3})


def test_an_answer_ends_where_an_option_says(model, tokenizer):
    ask = lambda **options: model.chat(tokenizer, tiles(1), "Which?", {"do_sample": False} | options)  # noqa: E731
    long = ask(max_new_tokens=12)
    first = ask(max_new_tokens=1)
    assert ask(max_new_tokens=12, max_time=1e-6) == first
    assert ask(max_new_tokens=12, stop_strings=[long[1:3]]) in long[:-1]
    config = GenerationConfig(max_new_tokens=12, do_sample=False)
    assert model.chat(tokenizer, tiles(1), "Which?", config) == long


def test_answers_can_be_streamed(model, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)
    answer = model.chat(tokenizer, tiles(1), "Which?", GENERATION | {"streamer": streamer})
    assert "".join(streamer).strip() == answer

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl.data.prompt import Picture
from internvl.data.tiling import Tiling
from internvl.errors import ConfigError, DataError
from internvl.infer.question import Question
from internvl.infer.session import Session
from internvl.infer.settings import Sampling
from internvl.model.constants import IMG_CONTEXT_TOKEN
from internvl.model.scaling import parse_rope_scaling


def encode(session, prompt, tiles_per_image, **options):
    """Ids of a prompt, as the model gets them."""
    pieces = session.questions.conversation.encode_prompt(prompt, **options)
    return session.questions.conversation.join(pieces, tiles_per_image, num_image_token=session.model.num_image_token)[
        0
    ]


def count_encoded(session, monkeypatch):
    """Numbers of tiles of every call of the vision tower from now on."""
    calls = []
    original = session.model.extract_feature

    def counting(pixel_values):
        calls.append(len(pixel_values))
        return original(pixel_values)

    monkeypatch.setattr(session.model, "extract_feature", counting)
    return calls


@pytest.mark.parametrize(("version", "stride"), [("default", None), ("v2pe_fix", 0.25), ("mrope", 1.5)])
def test_answers_equal_the_models_own_chat(checkpoint, make_image, version, stride):
    session = Session.from_pretrained(
        checkpoint, device="cpu", rope_pos_id_version=version, rope_pos_id_stride=stride, max_num=4
    )
    paths = [make_image("a.png", 84, 28, seed=1), make_image("b.png", 28, 28, seed=2)]
    question = "first <image> then <image>\nwhich?"
    tiling = Tiling(1, 4, 28, use_thumbnail=True)
    tiles = [tiling.split(Image.open(path)) for path in paths]
    pixels = torch.cat([session.pictures._transform(t) for t in tiles])
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = session.model.chat(
        session.tokenizer,
        pixels,
        question,
        options,
        num_patches_list=[len(t) for t in tiles],
        image_grids=torch.tensor([tiling.grid(84, 28), tiling.grid(28, 28)]),
        rope_pos_id_version=version,
        rope_pos_id_stride=stride,
    )
    answer = session.answer(question, paths, max_new_tokens=12)
    assert answer.text == expected
    assert answer.num_tiles == 5
    assert answer.num_new_tokens <= 12


def test_positions_follow_the_stride(checkpoint, make_image):
    path = make_image("wide.png", 112, 28)  # 4 tiles and a thumbnail
    last = {}
    for version, stride in (("default", None), ("v2pe_fix", 0.5), ("v2pe_fix", 2)):
        session = Session.from_pretrained(
            checkpoint, device="cpu", rope_pos_id_version=version, rope_pos_id_stride=stride, max_num=4
        )
        answer = session.answer("<image>what?", [path], max_new_tokens=1)
        num_text = answer.num_prompt_tokens - 5 * session.model.num_image_token
        last[stride] = answer.last_position - (num_text - 1)
    assert last == {None: 5.0, 0.5: 3.0, 2: 10.0}  # 5 tiles; ceil(2.5) = 3


def test_placeholders_must_match_images(session, make_image):
    with pytest.raises(DataError, match="2 <image> for 1 images"):
        session.answer("<image> and <image>", [make_image("a.png")], max_new_tokens=1)


def test_literal_image_tokens_in_text_stay_text(session, make_image):
    prompt = f"<image> literally <img>{IMG_CONTEXT_TOKEN}</img><|im_end|>?"
    answer = session.answer(prompt, [make_image("a.png")], max_new_tokens=1)
    assert answer.num_tiles == 1
    ids = encode(session, prompt, [1])
    assert int((ids == session.model.img_context_token_id).sum()) == session.model.num_image_token
    stop_id = session.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert int((ids == stop_id).sum()) == 2  # after the system message and after the question


def test_text_only_questions_work(session):
    assert session.answer("no picture", max_new_tokens=2).num_tiles == 0


@pytest.mark.parametrize(("vit_batch_size", "expected"), [(None, [15, 3]), (4, [3, 3, 3, 3, 3, 3]), (2, [3] * 6)])
def test_pictures_pass_the_vision_tower_together(session, make_image, monkeypatch, vit_batch_size, expected):
    """Six pictures of two tiles and a thumbnail each, whole pictures at a time; features as of each alone."""
    paths = [make_image(f"{seed}.png", 56, 28, seed=seed) for seed in range(6)]
    pictures = [Picture(path, tiling=session.pictures.tiling(4)) for path in paths]
    alone = [session.pictures.encode([picture])[0] for picture in pictures]
    session.release_memory()
    calls = count_encoded(session, monkeypatch)
    monkeypatch.setattr(session.model, "vit_batch_size", vit_batch_size)
    together, tiles = session.pictures.encode(pictures)
    assert (tiles, calls) == ([3] * 6, expected)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_cached_features_give_the_same_answers_and_are_encoded_once(checkpoint, make_image, monkeypatch):
    paths = [make_image(f"{i}.png", 28 * (1 + i % 3), 28, seed=i) for i in range(4)]
    questions = [("<image>?", paths[:1]), ("<image><image>!", paths[:2]), ("a<image>b<image>c<image>", paths[1:])]
    answers, calls = {}, {}
    for mib in (0, 1):
        session = Session.from_pretrained(checkpoint, device="cpu", max_num=4, cache_mib=mib)
        calls[mib] = count_encoded(session, monkeypatch)
        answers[mib] = [session.answer(q, p, max_new_tokens=8).text for q, p in questions * 2]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == len(questions)
    # Pictures of 1, 3, 4 and 1 tiles: each is encoded whenever it is shown, or once.
    assert (sum(calls[0]), sum(calls[1])) == (2 * (1 + 4 + 8), 9)


def test_an_image_used_twice_in_a_question_is_encoded_once(session, make_image, monkeypatch):
    calls = count_encoded(session, monkeypatch)
    path = make_image("a.png")
    picture = Image.open(path).convert("RGB")
    session.answer("<image><image>", [path, path], max_new_tokens=1)
    session.answer("<image><image>", [picture, picture], max_new_tokens=1)
    assert calls == [1, 1]


def test_a_changed_file_is_encoded_again(session, make_image, monkeypatch):
    calls = count_encoded(session, monkeypatch)
    path = make_image("a.png", seed=1)
    session.answer("<image>", [path], max_new_tokens=1)
    make_image("a.png", seed=2)
    os.utime(path, ns=(1, 1))
    session.answer("<image>", [path], max_new_tokens=1)
    assert calls == [1, 1]


def test_max_num_of_a_question_wins(session, make_image):
    path = make_image("wide.png", 112, 28)
    tiles = {n: session.answer("<image>", [path], max_new_tokens=1, max_num=n).num_tiles for n in (1, 2, 4)}
    assert tiles == {1: 1, 2: 3, 4: 5}


def test_images_can_have_a_limit_each(session, make_image):
    path = make_image("wide.png", 112, 28)
    two = {"prompt": "<image><image>", "images": [path, path], "max_new_tokens": 1}
    assert session.answer(**two, max_num=[4, 1]).num_tiles == 5 + 1
    with pytest.raises(ConfigError, match="max_num has 1 limits for 2 images"):
        session.answer(**two, max_num=[4])
    with pytest.raises(ConfigError, match="max_num is 0"):
        session.answer(**two, max_num=[4, 0])


def test_the_answer_ends_at_the_separator(session, monkeypatch):
    ids = session.tokenizer(" blue <|im_end|>more", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(session.model, "generate", lambda **kwargs: torch.tensor([ids]))
    assert session.answer("colour?", max_new_tokens=8).text == "blue"


def test_generation_stops_at_the_stop_token(session):
    stop = session.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        session.model.language_model.output.weight.zero_()
        bias = torch.nn.Parameter(torch.zeros(session.model.config.llm_config.vocab_size))
        bias[stop] = 1.0
        session.model.language_model.output.bias = bias
    answer = session.answer("x", max_new_tokens=20)
    assert (answer.text, answer.num_new_tokens) == ("", 1)


def test_a_cut_short_image_is_an_error(session, make_image):
    path = make_image("a.png", 64, 64)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.png"):
        session.answer("<image>", [path], max_new_tokens=1)


def test_a_missing_image_is_an_error(session, tmp_path):
    with pytest.raises(DataError, match=r"none\.png"):
        session.answer("<image>", [tmp_path / "none.png"], max_new_tokens=1)


@pytest.mark.parametrize(
    ("version", "stride", "message"),
    [
        ("v2pe", 1, "unknown"),
        ("v2pe_fix", None, "needs"),
        *(("v2pe_fix", stride, "positive") for stride in (0, -1, float("inf"), float("nan"))),
    ],
)
def test_wrong_positions_are_refused(checkpoint, version, stride, message):
    with pytest.raises(ConfigError, match=message):
        Session.from_pretrained(checkpoint, device="cpu", rope_pos_id_version=version, rope_pos_id_stride=stride)


def test_rope_scaling_can_be_chosen_and_changes_answers(checkpoint, make_image):
    positions = {"device": "cpu", "rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 2}
    image = make_image("a.png", 112, 84)
    question = f"<image>{'what is it? ' * 40}"
    plain = Session.from_pretrained(checkpoint, **positions)
    scaled = Session.from_pretrained(checkpoint, **positions, rope_scaling=parse_rope_scaling("linear:8"))
    assert scaled.model.config.llm_config.rope_scaling == {"type": "linear", "factor": 8.0, "scale_v2pe": True}
    answers = [session.answer(question, [image], max_new_tokens=20) for session in (plain, scaled)]
    assert answers[0].text != answers[1].text
    assert answers[0].last_position == answers[1].last_position


def test_dynamic_scaling_is_refused_for_the_checkpoints_own_v2pe_positions(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config |= {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 2}
    (copy / "config.json").write_text(json.dumps(config))
    scaling = parse_rope_scaling("dynamic:2")
    with pytest.raises(ConfigError, match="dynamic NTK follows the number of tokens"):
        Session.from_pretrained(copy, device="cpu", rope_scaling=scaling)
    session = Session.from_pretrained(copy, device="cpu", rope_pos_id_version="default", rope_scaling=scaling)
    assert session.model.config.llm_config.rope_scaling == {"type": "dynamic", "factor": 2.0}


# ------------------------------------------------------------------------------------- conversations, streams, draws


def test_a_conversation_equals_the_models_own_chat(checkpoint, make_image):
    session = Session.from_pretrained(
        checkpoint, device="cpu", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=0.25, max_num=1
    )
    paths = [make_image(f"{i}.png", seed=i) for i in range(3)]
    pixels = torch.cat([session.pictures._transform([Image.open(path).convert("RGB")]) for path in paths])
    history = [("<image>\nfirst?", "A < B <|im_end|>"), ("no picture", "well")]
    question = "<image> and <image>?"
    expected = session.model.chat(
        session.tokenizer,
        pixels,
        question,
        {"max_new_tokens": 12, "do_sample": False},
        history=history,
        num_patches_list=[1, 1, 1],
        rope_pos_id_version="v2pe_fix",
        rope_pos_id_stride=0.25,
    )
    assert session.answer(question, paths, max_new_tokens=12, history=history).text == expected
    assert session.answer(question, paths[1:], max_new_tokens=12).text != expected


def test_images_of_earlier_turns_come_first(session, make_image):
    paths = [make_image("a.png", 28, 28), make_image("b.png", 112, 28)]  # 1 and 5 tiles
    image_id = session.model.img_context_token_id
    ids = encode(session, "<image>now", [1, 5], history=[("<image>before", "yes")])
    tokens = session.tokenizer.convert_ids_to_tokens(ids.tolist())
    runs = [len(run) for run in "".join("i" if i == image_id else " " for i in ids.tolist()).split()]
    assert runs == [session.model.num_image_token, 5 * session.model.num_image_token]
    assert tokens.count("<|im_start|>") == 5
    answer = session.answer("<image>now", paths, max_new_tokens=1, history=[("<image>before", "yes")])
    assert (answer.num_tiles, answer.num_prompt_tokens) == (6, len(ids))


def test_placeholders_count_over_all_questions_but_not_answers(session, make_image):
    path = make_image("a.png")
    history = [("<image>which?", "an <image>, an <img> and <IMG_CONTEXT>")]
    assert session.answer("sure?", [path], max_new_tokens=1, history=history).num_tiles == 1
    with pytest.raises(DataError, match=r"the 2 questions of the conversation have 2 <image> for 1 images"):
        session.answer("<image>?", [path], max_new_tokens=1, history=history)


def test_streamed_pieces_add_up_to_the_answer(session, make_image):
    path = make_image("a.png")
    pieces = []
    answer = session.answer("<image>what?", [path], max_new_tokens=40, on_text=pieces.append)
    assert "".join(pieces) == answer.text == session.answer("<image>what?", [path], max_new_tokens=40).text
    assert len(pieces) > 3


def test_draws_follow_their_seed_and_leave_the_global_generator_alone(session):
    state = torch.get_rng_state()
    texts = [
        session.answer("what?", max_new_tokens=12, sampling=Sampling(1.5, seed=seed)).text for seed in (0, 0, 1, 2)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tiny_share_or_temperature_leaves_the_most_probable_token(session):
    greedy = session.answer("what?", max_new_tokens=12).text
    assert session.answer("what?", max_new_tokens=12, sampling=Sampling(1.0, top_p=1e-6, seed=0)).text == greedy
    assert session.answer("what?", max_new_tokens=12, sampling=Sampling(1e-4, seed=0)).text == greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_num": 0}, "max_num is 0"),
    ],
)
def test_options_out_of_range_are_refused(session, options, message):
    with pytest.raises(ConfigError, match=message):
        session.answer("what?", **{"max_new_tokens": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_sampling_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)


@pytest.mark.parametrize(
    ("saved", "stride", "chosen"),
    [
        (("default", None), None, ("default", None)),
        (("default", None), 0.5, ("v2pe_fix", 0.5)),
        (("v2pe_fix", 4.0), None, ("v2pe_fix", 4.0)),
        (("v2pe_fix", 4.0), 2.0, ("v2pe_fix", 2.0)),
        (("v2pe_rnd", None), None, ("default", None)),
    ],
)
def test_positions_are_the_checkpoints_own_unless_chosen(session, saved, stride, chosen):
    session.model.config.rope_pos_id_version, session.model.config.rope_pos_id_stride = saved
    made = Session(session.model, session.tokenizer, rope_pos_id_stride=stride)
    assert (made.settings.rope_pos_id_version, made.settings.rope_pos_id_stride) == chosen


def test_a_chunked_prompt_gives_the_same_answer_and_bounds_the_decoder(checkpoint, make_image):
    lengths, answers = {}, {}
    for size in (None, 10):
        session = Session.from_pretrained(
            checkpoint, device="cpu", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=0.25, prefill_chunk_size=size
        )
        seen = lengths.setdefault(size, [])
        session.model.language_model.model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: (
                seen.append(kwargs["inputs_embeds"].shape[1]) if kwargs.get("inputs_embeds") is not None else None
            ),
            with_kwargs=True,
        )
        answers[size] = session.answer("<image>\nwhich?", [make_image("a.png", 84, 28)], max_new_tokens=8).text
    assert answers[None] == answers[10]
    assert max(lengths[None]) > 20
    assert max(lengths[10]) == 10
    with pytest.raises(ConfigError, match="--prefill_chunk_size must be at least 1"):
        Session.from_pretrained(checkpoint, device="cpu", prefill_chunk_size=0)


# ------------------------------------------------------------------------- many questions: batches, prefixes, pictures


def without_time(answer):
    return replace(answer, seconds=0.0)


def count_decoded(session):
    """Lengths of what passes the decoder from now on, longer than one token."""
    lengths = []
    session.model.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: (
            lengths.append(kwargs["inputs_embeds"].shape[1])
            if kwargs.get("inputs_embeds") is not None and kwargs["inputs_embeds"].shape[1] > 1
            else None
        ),
        with_kwargs=True,
    )
    return lengths


@pytest.mark.parametrize(
    ("options", "chunk"),
    [
        ({}, None),
        ({"rope_pos_id_stride": 0.25}, None),
        ({"rope_pos_id_version": "v2pe_rnd"}, None),
        ({"rope_pos_id_stride": 0.25}, 16),
        ({"rope_scaling": parse_rope_scaling("dynamic:4")}, None),
    ],
)
def test_questions_answered_at_once_have_the_answers_of_one_by_one(checkpoint, make_image, options, chunk):
    session = Session.from_pretrained(checkpoint, device="cpu", max_num=4, prefill_chunk_size=chunk, **options)
    paths = [make_image(f"{i}.png", 28 * (1 + 2 * i), 28, seed=i) for i in range(3)]
    questions = [
        Question("<image>\nwhat is it?", [paths[2]]),
        Question("no picture at all, but a longer text than that of the others"),
        Question("<image> or <image>", [paths[0], paths[1]], max_num=[1, 4]),
        Question("?"),
        Question("<image>\nwhat is it?", [paths[2]], max_num=1),
    ]
    expected = [
        without_time(session.answer(q.prompt, q.images, max_num=q.max_num, max_new_tokens=12)) for q in questions
    ]
    assert len({answer.text for answer in expected}) == len(questions)
    answers = session.answer_batch(questions, max_new_tokens=12)
    assert [without_time(answer) for answer in answers] == expected
    assert all(answer.seconds > 0 for answer in answers)


def test_an_answer_that_ends_early_is_not_longer_in_a_batch(session, monkeypatch):
    stop = session.tokenizer.convert_tokens_to_ids("<|im_end|>")
    pad = session.tokenizer.pad_token_id
    monkeypatch.setattr(
        session.model, "generate", lambda **kwargs: torch.tensor([[90, stop, pad, pad], [90, 91, 92, 93]])
    )
    answers = session.answer_batch([Question("a"), Question("b")], max_new_tokens=4)
    assert [answer.num_new_tokens for answer in answers] == [2, 4]
    assert answers[1].text.startswith(answers[0].text)


def test_quantized_caches_take_one_question_at_a_time(session):
    session.settings = replace(session.settings, kv_cache="quantized")
    with pytest.raises(ConfigError, match="one question at a time"):
        session.answer_batch([Question("a"), Question("b")], max_new_tokens=1)
    assert session.answer_batch([Question("a")], max_new_tokens=1)


@dataclass(frozen=True)
class Opened:
    path: Path

    def open(self):
        return Image.open(self.path)


def test_pictures_that_open_themselves_are_encoded_once_for_all_questions(session, make_image, monkeypatch):
    calls = count_encoded(session, monkeypatch)
    path = make_image("a.png", 84, 28)
    expected = session.answer("<image>?", [path], max_new_tokens=6)
    for _ in range(2):
        answer = session.answer("<image>?", [Opened(path)], max_new_tokens=6)
        assert without_time(answer) == without_time(expected)
    assert calls == [4, 4]
    session.release_memory()
    session.answer("<image>?", [Opened(path)], max_new_tokens=6)
    assert calls == [4, 4, 4]


@pytest.mark.parametrize(
    ("version", "stride", "chunk"),
    [("default", None, None), ("default", None, 16), ("v2pe_fix", 0.25, None), ("v2pe_fix", 0.25, 16), ("hope", 2, 16)],
)
def test_what_prompts_have_in_common_passes_the_decoder_once(checkpoint, make_image, version, stride, chunk):
    positions = {"rope_pos_id_version": version, "rope_pos_id_stride": stride}
    options = {"device": "cpu", "max_num": 4, "prefill_chunk_size": chunk, **positions}
    if version == "default":
        options["rope_scaling"] = parse_rope_scaling("none")
    plain = Session.from_pretrained(checkpoint, **options)
    session = Session.from_pretrained(checkpoint, **options, reuse_prefix=True)
    first, second, third = (make_image(f"{i}.png", 84, 28, seed=i) for i in range(3))
    context = f"{'some words ' * 20}<image> and more words <image>"
    asked = [
        (f"{context}\nwhich?", [first, second]),
        (f"{context}\nhow many of them are there?", [first, second]),
        (f"{context}\nhow many of them are there?", [first, second]),
        (f"{context}\nwhich?", [first, third]),  # other features behind the same tokens
        (f"{context}\nwhich?", [third, first]),
        ("something else", []),
        (f"{context}\nwhich?", [third, first]),
    ]
    lengths = count_decoded(session)
    sums = []
    for prompt, images in asked:
        lengths.clear()
        answer = session.answer(prompt, images, max_new_tokens=8)
        sums.append(sum(lengths))
        assert without_time(answer) == without_time(plain.answer(prompt, images, max_new_tokens=8))
    whole = sums[0]
    assert sums[1] < whole / 3
    assert sums[2] <= 1  # the last token at least
    assert sums[2] < sums[3] < sums[4] < whole / 2  # from the second image on, from the first one on
    assert sums[6] > whole / 2


def test_pictures_in_memory_are_never_taken_for_each_other(checkpoint, make_image):
    plain = Session.from_pretrained(checkpoint, device="cpu", rope_pos_id_stride=1)
    session = Session.from_pretrained(checkpoint, device="cpu", rope_pos_id_stride=1, reuse_prefix=True)
    for seed in range(6):
        path = make_image("same.png", seed=seed)
        answer = session.answer("<image>what?", [Image.open(path).convert("RGB")], max_new_tokens=12)
        expected = plain.answer("<image>what?", [Image.open(path).convert("RGB")], max_new_tokens=12)
        assert without_time(answer) == without_time(expected)


def test_nothing_is_reused_where_frequencies_follow_the_length(checkpoint):
    scaling = parse_rope_scaling("dynamic:4")
    session = Session.from_pretrained(checkpoint, device="cpu", rope_scaling=scaling, reuse_prefix=True)
    lengths = count_decoded(session)
    answer = session.answer("a long question", max_new_tokens=4)
    session.answer("a long question", max_new_tokens=4)
    assert lengths == [answer.num_prompt_tokens] * 2


def test_a_prefix_is_kept_by_the_plain_cache_only(session):
    with pytest.raises(ConfigError, match="reuse_prefix needs the kv_cache dynamic"):
        Session(session.model, session.tokenizer, kv_cache="static", reuse_prefix=True)

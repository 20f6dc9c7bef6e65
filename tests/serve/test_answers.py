"""The official client asks a real server."""

import base64
import concurrent.futures

from internvl.infer.question import Question
from tests.data.numbered_videos import write_video
from tests.serve.conftest import ask, make_picture, read_metric, run_server, say, show

FIRST, SECOND = make_picture(seed=1), make_picture(112, 56, seed=2)


def test_text_is_answered_as_the_session_does(client, tiny):
    answer = ask(client, say("Tell me about this."))
    expected = tiny.answer("Tell me about this.", max_new_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == expected.num_prompt_tokens
    assert answer.usage.completion_tokens == expected.num_new_tokens
    assert answer.v2pe["last_position"] == expected.last_position


def test_two_pictures_in_two_turns_after_a_system_message(client, tiny):
    answer = ask(
        client,
        {"role": "system", "content": "Be brief."},
        say(show(FIRST), "What is this?"),
        {"role": "assistant", "content": "A cat."},
        say("And", show(SECOND), "this <image> or <image>?"),
    )
    expected = tiny.ask(
        Question(
            "And\n<image>\nthis < image> or < image>?",
            [FIRST, SECOND],
            history=[("<image>\nWhat is this?", "A cat.")],
            system_message="Be brief.",
        ),
        max_new_tokens=12,
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.num_prompt_tokens
    assert answer.v2pe["tiles"] == expected.num_tiles


def test_a_message_may_say_where_its_pictures_stand(client, tiny):
    answer = ask(client, say(show(FIRST), show(SECOND), "first <image>, then <image>?"))
    expected = tiny.answer("first <image>, then <image>?", [FIRST, SECOND], max_new_tokens=12)
    assert answer.usage.prompt_tokens == expected.num_prompt_tokens
    assert answer.choices[0].message.content == expected.text


def test_a_video_becomes_frames(client, tmp_path, tiny):
    path = write_video(tmp_path / "clip.mp4", 12)
    url = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    message = say({"type": "video_url", "video_url": {"url": url}}, "What happens?")
    answer = ask(client, message, extra_body={"num_frames": 4})
    expected = tiny.answer("<video>\nWhat happens?", videos=[path], num_frames=4, max_new_tokens=12)
    assert answer.v2pe["frames"] == answer.v2pe["tiles"] == 4
    assert answer.choices[0].message.content == expected.text


def test_files_below_the_allowed_folder_are_read(client, media_root):
    answer = ask(client, say(show(f"file://{media_root}/a%20picture.png"), "?"))
    assert (
        answer.choices[0].message.content
        == ask(client, say(show(make_picture(seed=5)), "?")).choices[0].message.content
    )


def test_a_stream_adds_up_to_the_answer(client):
    message = say(show(FIRST), "What is this?")
    whole = ask(client, message, extra_body={"return_positions": True})
    options = {"stream_options": {"include_usage": True}, "extra_body": {"return_positions": True}}
    *chunks, usage = ask(client, message, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert chunks[-1].v2pe["spans"] == whole.v2pe["spans"]
    assert (usage.choices, usage.usage) == ([], whole.usage)


def test_a_stride_in_the_request_moves_the_positions(client):
    message = say(show(make_picture(56, 56)), "?")
    ordinary = ask(client, message, extra_body={"return_positions": True}).v2pe
    positions = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 1, "return_positions": True}
    dense = ask(client, message, extra_body=positions).v2pe
    assert [(span["kind"], span["step"]) for span in ordinary["spans"]] == [("text", 1), ("visual", 1), ("text", 1)]
    assert [(span["kind"], span["step"]) for span in dense["spans"]] == [("text", 1), ("visual", 0.25), ("text", 1)]
    assert ordinary["last_position"] - dense["last_position"] == 3
    assert (ordinary["rope_pos_id_stride"], dense["rope_pos_id_stride"]) == (None, 1)
    assert sum(span["tokens"] for span in dense["spans"]) == dense["prompt_tokens"]


def test_a_request_may_ask_for_positions_on_several_axes(client):
    message = say(show(make_picture(56, 56)), "?")
    ordinary = ask(client, message).v2pe
    axes = ask(client, message, extra_body={"rope_pos_id_version": "mrope", "return_positions": True}).v2pe
    assert (axes["rope_pos_id_version"], axes["rope_pos_id_stride"]) == ("mrope", None)
    assert ordinary["last_position"] - axes["last_position"] == 2  # 2 x 2 visual tokens take two places
    assert sum(span["tokens"] for span in axes["spans"]) == axes["prompt_tokens"]


def test_tiles_are_limited_per_request(client):
    message = say(show(make_picture(168, 56)), "?")
    assert [ask(client, message, extra_body={"max_tiles": n}).v2pe["tiles"] for n in (1, 3)] == [1, 3]


def test_choices_seeds_and_log_probabilities(client):
    options = {"temperature": 2.0, "seed": 7, "n": 3, "logprobs": True, "top_logprobs": 2}
    answer, again = (ask(client, say("Tell me about this."), **options) for _ in range(2))
    assert [choice.message.content for choice in answer.choices] == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    tokens = [token for choice in answer.choices for token in choice.logprobs.content]
    assert len(tokens) == answer.usage.completion_tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    other = ask(client, say("Tell me about this."), **{**options, "seed": 8})
    assert [choice.message.content for choice in other.choices] != [choice.message.content for choice in answer.choices]


def test_stop_texts_and_limits_end_an_answer(endless):
    with run_server(endless) as client:
        whole = ask(client, say("why?"), max_tokens=20)
        text = whole.choices[0].message.content
        assert whole.choices[0].finish_reason == "length"
        stopped = ask(client, say("why?"), max_completion_tokens=20, max_tokens=None, stop=[text[5:7]])
        assert stopped.choices[0].message.content == text[: text.index(text[5:7])].strip()
        assert stopped.choices[0].finish_reason == "stop"


def test_requests_that_wait_together_are_answered_together(endless, monkeypatch):
    monkeypatch.setattr("internvl.serve.engine._GATHERING_S", 1.0)
    questions = [f"{'why ' * n}?" for n in range(1, 5)]
    with run_server(endless, max_batch=4) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: ask(client, say(text)).choices[0].message.content, questions))
        assert read_metric(client, "v2pe_batch_size_count") == 1
        assert read_metric(client, "v2pe_batch_size_sum") == 4
    assert together == [endless.answer(text, max_new_tokens=12).text for text in questions]


def test_a_picture_is_encoded_once_for_all_requests_that_show_it(client, tiny, monkeypatch):
    calls = []
    original = tiny.model.extract_feature
    monkeypatch.setattr(tiny.model, "extract_feature", lambda pixels: calls.append(len(pixels)) or original(pixels))
    for text in ("once", "twice"):
        ask(client, say(show(make_picture(seed=77)), text))
    assert len(calls) == 1


def test_the_model_is_listed_with_its_positions(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" == client.models.retrieve("tiny").id
    assert model.v2pe["tokens_per_tile"] == 4
    assert model.v2pe["max_tiles"] == 6
    assert "v2pe_fix" in model.v2pe["versions"]


def test_metrics_count_requests_and_tokens(client):
    names = ("v2pe_requests_total", "v2pe_prompt_tokens_total", "v2pe_new_tokens_total")
    before = [read_metric(client, name) for name in names]
    usage = ask(client, say("count me")).usage
    after = [read_metric(client, name) for name in names]
    difference = [y - x for x, y in zip(before, after, strict=True)]
    assert difference == [1, usage.prompt_tokens, usage.completion_tokens]
    assert read_metric(client, "v2pe_open_requests") == 0


def test_health_needs_no_key(tiny):
    with run_server(tiny, api_key="secret") as client:
        assert client.get("/../health", cast_to=object, options={"headers": {"Authorization": ""}}) == {"status": "ok"}

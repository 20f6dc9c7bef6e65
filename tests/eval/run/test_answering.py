"""What becomes of a sample whose files or memory fail. Too little memory is played by a `generate` that raises."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.core.sample import PackedImage, Sample
from eval.core.task import Task
from eval.run.answering import is_out_of_memory, load_answerer
from eval.run.queue import LastAnswerError
from internvl.infer.context_parallel import ContextParallel
from internvl.infer.settings import InferenceSettings
from internvl.model.modeling_internvl_chat import InternVLChatModel

TASK = Task(
    name="g/t",
    version=1,
    source="here",
    annotation=Path("t.jsonl"),
    read_samples=lambda root: [],
    max_new_tokens=6,
    max_num=4,
    score_answer=lambda answer, response, protocol: float(answer == response),
)
ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
IN_MAIN_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


@pytest.fixture
def load(checkpoint):
    def load(**options):
        settings = InferenceSettings("v2pe_fix", 0.25, dtype="float32", device="cpu", cache_mib=16)
        parallel = options.pop("context_parallel", None)
        return load_answerer(checkpoint, replace(settings, **options), context_parallel=parallel)

    return load


@pytest.fixture
def samples(tmp_path):
    made = []
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28 * (1 + index), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        made.append(Sample(f"s{index}", f"<image>\nwhat{'?' * 3 * index}", (tmp_path / f"{index}.png",), "x"))
    return made


@pytest.fixture
def generate(monkeypatch):
    """Let `generate` raise where `fails(arguments)` says so; the calls so far."""

    def install(error, fails):
        calls, original = [], InternVLChatModel.generate

        def generate(self, **arguments):
            calls.append((arguments["prefill_chunk_size"], arguments["kv_cache"], len(arguments["input_ids"])))
            if fails(arguments):
                raise error
            return original(self, **arguments)

        monkeypatch.setattr(InternVLChatModel, "generate", generate)
        return calls

    return install


def without_times(predictions):
    return [replace(prediction, seconds=0.0) for prediction in predictions]


@pytest.mark.parametrize("error", [ON_GPU, IN_MAIN_MEMORY])
def test_out_of_memory_is_tried_again_in_small_pieces_and_gives_the_same_answer(load, samples, generate, error):
    expected = load()(TASK, samples[:1])
    calls = generate(error, lambda arguments: arguments["prefill_chunk_size"] is None)
    predictions = load()(TASK, samples[:1])
    assert calls == [(None, "dynamic", 1), (1024, "offloaded", 1)]
    assert without_times(predictions) == without_times(expected)
    assert predictions[0].response


def test_what_needs_too_much_memory_twice_fails_alone(load, samples, generate):
    answer = load(prefill_chunk_size=50)
    wide = len(samples[2].prompt)
    calls = generate(ON_GPU, lambda arguments: arguments["input_ids"].shape[1] > 70 and wide)
    lengths = [prediction.num_prompt_tokens for prediction in answer(TASK, [samples[0], samples[1]])]
    assert max(lengths) <= 70
    calls.clear()
    long = replace(samples[3], prompt=samples[3].prompt + " and" * 60)
    failed, other = answer(replace(TASK, write_gold=str), [long, samples[0]])
    assert (failed.id, failed.response, failed.failure) == ("s3", "", "out of memory")
    assert failed.seconds > 0
    assert other.failure is None
    assert calls[:2] == [(50, "dynamic", 1), (50, "offloaded", 1)]


def test_batches_give_the_predictions_of_one_by_one_also_when_they_are_too_large(load, samples, generate):
    answer = load()
    expected = [prediction for sample in samples for prediction in answer(TASK, [sample])]
    assert without_times(answer(TASK, samples)) == without_times(expected)
    calls = generate(ON_GPU, lambda arguments: len(arguments["input_ids"]) > 1)
    assert without_times(answer(TASK, samples)) == without_times(expected)
    assert [rows for _, _, rows in calls] == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("content", [b"", b"no picture", None])
@pytest.mark.parametrize("together", [True, False])
def test_a_damaged_picture_fails_its_own_question_only(load, samples, content, together):
    answer = load()
    expected = answer(TASK, samples)
    path = samples[1].images[0]
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    fresh = load()
    predictions = fresh(TASK, samples) if together else [p for s in samples for p in fresh(TASK, [s])]
    assert [prediction.failure is None for prediction in predictions] == [True, False, True, True]
    assert "1.png" in predictions[1].failure
    others = [0, 2, 3]
    assert without_times(predictions[i] for i in others) == without_times(expected[i] for i in others)


@pytest.mark.parametrize(
    "text", ["?", base64.b64encode(b"text").decode(), base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()]
)
def test_a_damaged_packed_picture_fails_its_question(load, text):
    sample = Sample("s", "<image>", (PackedImage("t.tsv row 3", text),), "x")
    [prediction] = load()(TASK, [sample])
    assert "t.tsv row 3" in prediction.failure


def test_a_wrong_number_of_placeholders_fails_the_question(load, samples):
    [prediction] = load()(TASK, [replace(samples[0], prompt="<image> <image>")])
    assert "2 <image> for 1 images" in prediction.failure


def test_a_packed_picture_of_several_questions_is_encoded_once(load, samples, monkeypatch):
    calls, original = [], InternVLChatModel.extract_feature
    monkeypatch.setattr(
        InternVLChatModel,
        "extract_feature",
        lambda self, pixels, **options: calls.append(len(pixels)) or original(self, pixels, **options),
    )
    content = base64.b64encode(samples[0].images[0].read_bytes()).decode()
    answer = load()
    for index in range(4):
        packed = PackedImage("t.tsv", str(content))
        [prediction] = answer(TASK, [replace(samples[0], id=str(index), images=(packed,))])
        assert prediction.failure is None
    assert calls == [1]


def test_quantized_answers_are_not_replaced_by_others(load, samples, generate):
    calls = generate(ON_GPU, lambda arguments: True)
    [prediction] = load(kv_cache="quantized")(TASK, samples[:1])
    assert prediction.failure == "out of memory"
    assert len(calls) == 1


def test_a_process_of_a_group_leaves_a_failed_prediction_and_ends(load, samples, generate):
    answer = load(context_parallel=ContextParallel(None))
    assert answer(TASK, samples[:1])[0].failure is None
    generate(ON_GPU, lambda arguments: True)
    with pytest.raises(LastAnswerError, match="sample s1: out of memory on one of the processes") as error:
        answer(TASK, samples[1:2])
    assert (error.value.predictions[0].id, error.value.predictions[0].failure) == ("s1", "out of memory")


def test_other_errors_end_the_run(load, samples, generate):
    generate(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), lambda arguments: True)
    for asked in (samples[:1], samples):
        with pytest.raises(RuntimeError, match="shapes"):
            load()(TASK, asked)


def test_torchs_own_words_for_too_little_memory_are_known():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes"))


@pytest.mark.parametrize(("version", "is_joined"), [("default", True), ("v2pe_fix", False)])
def test_under_ordinary_positions_one_placeholder_stands_for_all_pictures(load, samples, version, is_joined):
    """The tiles of all pictures form one block: one pair of `<img>` and `</img>`, as in the public code."""
    pictures = tuple(sample.images[0] for sample in samples[2:])
    several = Sample("m", "1 <image> 2 <image>\nwhat", pictures, "x", tile_limits=(None, 1))
    stride = 0.25 if version == "v2pe_fix" else None
    ask = load(rope_pos_id_version=version, rope_pos_id_stride=stride)
    (plain,) = ask(TASK, [several])
    (asked,) = ask(TASK, [replace(several, joined_prompt="<image>\nwhat")])
    (one,) = ask(TASK, [replace(several, prompt="<image>\nwhat", images=pictures[:1], tile_limits=(None,))])
    assert (asked.failure, asked.num_tiles) == (None, plain.num_tiles)
    if is_joined:
        per_tile = (asked.num_prompt_tokens - one.num_prompt_tokens) / (asked.num_tiles - one.num_tiles)
        assert per_tile == int(per_tile)
        assert asked.num_prompt_tokens < plain.num_prompt_tokens
    else:
        assert without_times([asked]) == without_times([plain])

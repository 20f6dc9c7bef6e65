"""Log-probabilities of prompts and answers are those of this project's own model."""

import pytest
from conftest import Reference, load_references
from vllm import SamplingParams

TOLERANCE = 1e-4
TEETH = 0.1  # what ordinary positions differ by, at least
DECODERS = ("internlm2", "qwen2", "llama", "qwen3", "phi3")


def ask(engine, references: list[Reference], *, reads_prompt: bool = True, names_stride: bool = True):
    """Answers to all requests, given at once."""
    num_new_tokens = len(references[0].ids) - references[0].num_prompt_tokens
    sampling = SamplingParams(
        temperature=0,
        max_tokens=num_new_tokens,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=0 if reads_prompt else None,
    )
    prompts = [reference.to_vllm(names_stride=names_stride) for reference in references]
    return engine.generate(prompts, sampling, use_tqdm=False)


def read_logprobs(output) -> list[float]:
    """Of the tokens of prompt (without the first one, if it was read) and answer."""
    steps = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [None])[1:], strict=False)
    answer = output.outputs[0]
    return [
        *(step[token].logprob for token, step in steps),
        *(step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)),
    ]


def largest_difference(output, expected: list[float]) -> float:
    """Of log-probabilities, from the end: a prompt that was not read has none."""
    found = read_logprobs(output)
    return max(abs(one - other) for one, other in zip(found, expected[-len(found) :], strict=True))


def check_ids(output, reference: Reference) -> None:
    assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == reference.ids


@pytest.mark.parametrize("decoder", DECODERS)
def test_strides_pictures_and_videos_of_a_mixed_batch(engines, note, decoder):
    """Eight requests run at a time, at strides of their own."""
    engine = engines.get(f"{decoder}/stride_1", max_num_batched_tokens=2048)
    references = load_references(decoder)
    for output, reference in zip(ask(engine, references), references, strict=True):
        check_ids(output, reference)
        case = f"{decoder}: {reference.name}" + (f", stride {reference.stride:g}" if reference.images else "")
        assert note(case, largest_difference(output, reference.logprobs)) < TOLERANCE
        is_plain = reference.stride == 4 or not (reference.images or reference.has_video)
        assert is_plain or largest_difference(output, reference.plain_logprobs) > TEETH


@pytest.mark.parametrize("stride", [1 / 16, 1, 3])
def test_prefix_cache_hits_keep_the_answer_and_never_cross_strides(engines, note, stride):
    # Random weights, whose answers differ from stride to stride.
    engine = engines.get("phi3/stride_1", max_num_batched_tokens=2048)
    engine.reset_prefix_cache()
    references = [reference for reference in load_references("phi3") if reference.name == "three pictures"]
    (reference,) = [reference for reference in references if reference.stride == stride]
    others = [reference for reference in references if reference.stride != stride]
    visual_start = reference.ids.index(887)  # <img>
    ask(engine, others, reads_prompt=False)
    (first,) = ask(engine, [reference], reads_prompt=False)
    (second,) = ask(engine, [reference], reads_prompt=False)
    assert first.num_cached_tokens <= visual_start
    assert second.num_cached_tokens > 64
    for output, name in ((first, "prefix cache of other strides"), (second, "prefix cache hit")):
        check_ids(output, reference)
        assert note(name, largest_difference(output, reference.logprobs)) < TOLERANCE


@pytest.mark.parametrize("stride", [0, 0.1, "many"])
def test_malformed_strides_of_requests_are_refused(engines, stride):
    engine = engines.get("phi3/stride_1", max_num_batched_tokens=2048)
    reference = load_references("phi3")[1]
    prompt = reference.to_vllm() | {"mm_processor_kwargs": {"rope_pos_id_stride": stride}}
    with pytest.raises(ValueError, match="multiple of 1/65536"):
        engine.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    (output,) = ask(engine, [reference])  # the engine goes on
    check_ids(output, reference)


@pytest.mark.parametrize("tokens", [2048, 24])
def test_the_stride_of_the_server_and_chunked_prefill(engines, note, tokens):
    engine = engines.get("internlm2/stride_0.0625", max_num_batched_tokens=tokens)
    assert engine.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens == tokens
    references = [reference for reference in load_references("internlm2") if reference.stride == 1 / 16]
    for output, reference in zip(ask(engine, references, names_stride=False), references, strict=True):
        check_ids(output, reference)
        case = "stride of the server, " + ("one prefill" if tokens > 512 else f"prefill in chunks of {tokens} tokens")
        assert note(case, largest_difference(output, reference.logprobs)) < TOLERANCE


def test_ordinary_positions_are_served_and_take_no_stride(engines, note):
    engine = engines.get("internlm2/default", max_num_batched_tokens=2048)
    (reference,) = [r for r in load_references("internlm2") if r.name == "three pictures" and r.stride == 1]
    (output,) = ask(engine, [reference], names_stride=False)
    (plain,) = [r for r in load_references("internlm2") if r.name == "three pictures" and r.stride == 4]
    check_ids(output, plain)
    assert note("rope_pos_id_version default", largest_difference(output, plain.logprobs)) < TOLERANCE
    with pytest.raises(ValueError, match="rope_pos_id_version default"):
        ask(engine, [reference])

import pytest

from internvl.synth.lengths import parse_length


@pytest.mark.parametrize("text", ["", "8q", "0", "4k-2k", "-3"])
def test_wrong_lengths_are_refused(text):
    with pytest.raises(Exception, match=r"length|shortest"):
        parse_length(text)


def test_lengths_are_read_as_people_write_them():
    lengths = [parse_length(text) for text in ("8k", "1M", "16k-32k", "131072", "1.5k")]
    assert [(length.low, length.high) for length in lengths] == [
        (8000, 8000), (10**6, 10**6), (16_000, 32_000), (131_072, 131_072), (1500, 1500)
    ]  # fmt: skip

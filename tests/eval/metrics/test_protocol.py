import pytest

from eval.metrics.protocol import PROTOCOLS, read_protocol
from internvl.errors import EvalError


def test_protocols_have_their_names():
    assert [read_protocol(name) for name in ("official", "upstream")] == list(PROTOCOLS)
    with pytest.raises(EvalError, match="unknown scoring protocol 'strict'; expected one of official, upstream"):
        read_protocol("strict")

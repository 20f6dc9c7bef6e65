"""Relaxed accuracy of ChartQA: numbers may differ by 5 %, text must be equal (Masry et al. 2022, arXiv 2203.10244).

`official` measures the error relative to the accepted answer, as pix2struct, VLMEvalKit and lmms-eval do. `upstream`
passes the two in the wrong order, as Qwen-VL, InternVL and V2PE do, so its error is relative to the model's answer.
"""

from eval.metrics.protocol import Protocol
from eval.metrics.text import read_golds, read_text

TOLERANCE = 0.05


def score(answer: object, response: str | None, protocol: Protocol, *, tolerance: float = TOLERANCE) -> float:
    """1 if the response matches one of the accepted answers."""
    said = read_text(response).strip()  # the accepted answers are not stripped
    pairs = ((gold, said) if protocol == "official" else (said, gold) for gold in read_golds(answer))
    return float(any(is_close(reference, value, tolerance) for reference, value in pairs))


def is_close(reference: str, value: str, tolerance: float = TOLERANCE) -> bool:
    """`|value - reference| / |reference| <= tolerance` if both are numbers, the reference not 0; else equal text."""
    target, given = parse_number(reference), parse_number(value)
    if given is None or not target:
        return value.lower() == reference.lower()
    return abs(given - target) / abs(target) <= tolerance


def parse_number(text: str) -> float | None:
    """What `float` reads, and `42%` as 0.42; None for everything else, `1,234` and `$5` included."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None

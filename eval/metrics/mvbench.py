"""MVBench: is the first word of the response the right option? (Li et al. 2023, arXiv 2311.17005)

`official` is `check_ans` of the benchmark's notebook, `upstream` V2PE's copy, which first deletes every `Answer: `. A
word is right if either contains the other, so `(`, `)` and `.` are right. The published rules also accept an empty
response: under `official` it is wrong here, under `upstream` it stays right, as in the published number.
"""

from collections.abc import Sequence

from eval.metrics.protocol import Protocol
from eval.metrics.text import read_golds, read_text

WHOLE_VIDEO_S = 100_000


def score(answer: object, response: str | None, protocol: Protocol) -> float:
    """1 if the response is right; `answer` has the form `(B) text of the option`."""
    said = read_text(response)
    if protocol == "official" and not said.strip():
        return 0.0
    if protocol == "upstream":
        said = said.replace("Answer: ", "")
    option = said.lower().split(" ")[0]
    golds = [gold.lower().split(" ")[0] for gold in read_golds(answer)]
    return float(any(option.replace(".", "") in gold or gold in option for gold in golds))


def find_frame_range(bound: Sequence[float] | None, *, fps: float, last: int, first: int = 0) -> tuple[int, int]:
    """First and last frame of a clip by the published rule. The range may run backwards where a clip starts too late.

    `bound` is start and end in seconds, None for the whole video. Frames of a folder are numbered from 1.
    """
    start, end = bound or (-WHOLE_VIDEO_S, WHOLE_VIDEO_S)
    return max(first, round(start * fps)), min(round(end * fps), last)

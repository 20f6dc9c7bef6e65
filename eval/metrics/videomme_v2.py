"""Video-MME-v2: the letter in a response, and scores of groups of four questions (Fu et al. 2026, arXiv 2604.05015).

Rules of `evaluation/test_video_mme_v2.py` of https://github.com/MME-Benchmarks/Video-MME-v2. That script gives a
response without a letter -1, which its groups then add up; here it is wrong (0), as in VLMEvalKit and lmms-eval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from eval.metrics.estimate import estimate_groups, estimate_mean
from eval.metrics.text import find_first_letter, score_letter

GROUP_SIZE = 4
GroupType = Literal["relevance", "logic"]
GROUP_TYPES: tuple[str, ...] = get_args(GroupType)
_PREFIXES = (
    "Final Answer:",
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
    "Answer:",
    "Option:",
)
_SQUARES = (0.0, 1 / 16, 4 / 16, 9 / 16, 1.0)
# Structure of a chain, whose brackets hold questions of one step -> score by number of finished questions.
_CHAINS: Mapping[str, Sequence[float]] = {
    "[1,2,3,4]": _SQUARES,
    "[1,[2,3],4]": (0.0, 1 / 12, 4 / 12, 7 / 12, 1.0),
    "[[1,2],3,4]": (0.0, 1 / 10, 2 / 10, 5 / 10, 1.0),
}
# The place of the second question of a bracket: right, it counts where the first one ended the chain.
_SECOND_CHANCES = {"[1,[2,3],4]": 2, "[[1,2],3,4]": 1}


def find_letter(response: str | None) -> str:
    """The first of A to H after the known prefixes are deleted (`Dogs` is D); empty if there is none."""
    return find_first_letter(response, letters="ABCDEFGH", prefixes=_PREFIXES)


def score(answer: object, response: str | None) -> float:
    """1 if the letter is right; a response without a letter is wrong."""
    return score_letter(answer, find_letter(response))


def score_relevance(is_right: Sequence[bool]) -> float:
    """Score of a group of related questions: the square of the share of right answers."""
    return _SQUARES[sum(is_right)]


def score_logic(is_right: Sequence[bool], structure: str) -> float:
    """Score of a group of questions that build on each other: how far the answers are right without a gap.

    Raises ValueError for a structure that is not published.
    """
    chain = normalise_structure(structure)
    num_right = next((place for place, right in enumerate(is_right) if not right), len(is_right))
    second = _SECOND_CHANCES.get(chain)
    if second is not None and num_right == second - 1 and is_right[second]:
        num_right += 1
    return _CHAINS[chain][num_right]


def normalise_structure(structure: str) -> str:
    """A published structure without spaces. Raises ValueError for another one."""
    chain = "".join(structure.split())
    if chain not in _CHAINS:
        raise ValueError(f"group_structure is {structure!r:.60}, expected one of {', '.join(_CHAINS)}")
    return chain


@dataclass(frozen=True)
class Group:
    """The answers to four questions about a video."""

    is_right: Sequence[bool]  # in the order of the questions
    group_type: str  # `relevance` or `logic`
    structure: str  # of a chain
    level: str  # `1` to `3`; empty where there is none
    second_head: str  # the ability
    third_head: str  # the ability, more finely

    @property
    def score(self) -> float:
        """In 0..1. Missing answers are wrong."""
        answers = [*self.is_right, *[False] * (GROUP_SIZE - len(self.is_right))]
        return score_logic(answers, self.structure) if self.group_type == "logic" else score_relevance(answers)


def summarise(groups: Sequence[Group]) -> dict[str, object]:
    """Means over groups.

    Returns:
        `score` and `stderr` (the published number), `by_level`, `by_group_type`, `by_second_head`, `by_third_head`, and
        `linear`, the share of right answers in groups of type relevance.
    """
    overall = estimate_mean([group.score for group in groups])
    tables = {
        f"by_{name}": estimate_groups(
            sorted((str(getattr(group, name)), group.score) for group in groups if getattr(group, name))
        )
        for name in ("level", "group_type", "second_head", "third_head")
    }
    related = [sum(group.is_right) / GROUP_SIZE for group in groups if group.group_type == "relevance"]
    linear = vars(estimate_mean(related)) if related else None
    return {"score": overall.score, "stderr": overall.stderr, **tables, "linear": linear}

"""Quizzes: facts and cards to hide in a long context, and a question about them with answer and options.

    retrieval-text    several people have numbers; what is the number of one of them?
    counting-text     a warden counts things at several places; how many were they at each?
    reasoning-text    who holds the key to which house, which house stands in which town: in which town ...?
    retrieval-image   several cards with figures and numbers; which number is on the red star's card (or: which card?)
    counting-image    cards with several figures each; how many stars are on each card?
    reasoning-image   the sum of the numbers on two cards

Every quiz hides needles of the same form that are not asked for, so finding any needle is not enough. Training and test
use different names. Wording and answers follow from the generator alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from internvl.errors import ConfigError
from internvl.synth.forms import Split
from internvl.synth.needles.cards import COLORS, SHAPES, Card
from internvl.synth.questions import Question

Form = Literal["free", "choice"]

NUM_OPTIONS = 4
MAX_NEEDLES = 8
_FIRST_NAMES = (
    "Maren", "Tobin", "Ilka", "Osric", "Petra", "Quill", "Rasmus", "Selma", "Torben", "Ulla", "Viggo", "Wenda",
    "Anselm", "Birte", "Caspar", "Dorrit", "Eskil", "Frida", "Gudrun", "Halvar", "Ingmar", "Jorun", "Kelda", "Lorcan",
)  # fmt: skip
_LAST_NAMES = (
    "Oldfield", "Brandt", "Castellan", "Drummond", "Eastwick", "Farrow", "Greaves", "Holloway", "Iverson", "Kestrel",
    "Lindqvist", "Marlowe", "Norcross", "Pemberton", "Quarles", "Ravensdale", "Stroud", "Thornbury", "Underhill",
    "Voss",
)  # fmt: skip
_TOWN_BEGINNINGS = (
    "Harn", "Pell", "Quen", "Ras", "Sker", "Taven", "Ulver", "Vinter", "Wex", "Yarrow", "Zell", "Corv",
)  # fmt: skip
_TOWN_ENDINGS = ("wick", "worth", "dale", "holt", "moor", "combe", "gate", "furt", "march", "hollow")
_TOWNS = tuple(beginning + ending for ending in _TOWN_ENDINGS for beginning in _TOWN_BEGINNINGS)
_HOUSES = (
    "Amber", "Basalt", "Cobalt", "Damask", "Ebony", "Flint", "Garnet", "Hazel", "Indigo", "Jasper", "Larch", "Marble",
    "Ochre", "Pewter", "Quartz", "Russet", "Sable", "Teal", "Umber", "Willow",
)  # fmt: skip
_PLACES = (
    "harbour", "mill", "quarry", "orchard", "chapel", "depot", "lighthouse", "market", "bridge", "tannery", "foundry",
    "granary", "brewery", "shipyard", "vineyard", "sawmill",
)  # fmt: skip
_THINGS = ("lanterns", "barrels", "crates", "ladders", "anchors", "wheelbarrows", "bells", "ropes")
_ATTRIBUTES = ("locker number", "ticket number", "membership number", "badge number", "parcel number")
_NUMBERS = range(10_000, 100_000)
_CARD_NUMBERS = range(10, 50)
_KINDS = tuple((color, shape) for color in COLORS for shape in SHAPES)
_MOST_COUNTED = 20
_MOST_FIGURES = 6


@dataclass(frozen=True)
class Quiz:
    """Needles and a question about some of them."""

    needles: tuple[str | Card, ...]  # sentences or cards, in the order in which they have to stand in the context
    question: Question  # `asked` are numbers of `needles`
    option_cards: tuple[Card, ...] = ()  # what its options show when they are images, else empty


@dataclass(frozen=True)
class QuizRequest:
    """The wanted properties of a quiz."""

    form: Form  # free answer or choice among four; counting is always free
    num_needles: int  # needles (pairs of needles, in reasoning over text), 2 to 8
    split: Split  # decides which names are used
    right: int  # place of the right option


def draw_quiz(task: str, request: QuizRequest, rng: Random) -> Quiz:
    """Make up a quiz; `rng` draws all that the request leaves open.

    Raises ConfigError for an unknown task, or too few or too many needles.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if not 2 <= request.num_needles <= MAX_NEEDLES:
        raise ConfigError(f"num_needles is {request.num_needles}, expected 2 to {MAX_NEEDLES}")
    return TASKS[task](request, rng)


def _half(values: tuple[str, ...], split: Split) -> tuple[str, ...]:
    return values[::2] if split == "train" else values[1::2]


def _draw_people(request: QuizRequest, rng: Random) -> list[str]:
    drawn = (rng.sample(_half(names, request.split), request.num_needles) for names in (_FIRST_NAMES, _LAST_NAMES))
    return [f"{first} {last}" for first, last in zip(*drawn, strict=True)]


def _ask_for_text(
    request: QuizRequest, text: str, answer: str, asked: tuple[int, ...], *, wrong: Sequence[str], num_answers: int
) -> Question:
    """A question with a free answer out of `num_answers`, or a choice between it and the first of `wrong`."""
    if request.form == "free":
        return Question(text, answer, asked, right=request.right, chance=1 / num_answers)
    others = wrong[: NUM_OPTIONS - 1]
    options = (*others[: request.right], answer, *others[request.right :])
    return Question(text, answer, asked, options, request.right, 1 / NUM_OPTIONS)


def _draw_wrong(values: Sequence[str], answer: str, num_needles: int, rng: Random) -> list[str]:
    """Wrong options: those that stand in the context (the first values), then others."""
    in_context = [value for value in values[:num_needles] if value != answer]
    return [*rng.sample(in_context, len(in_context))[: NUM_OPTIONS - 1], *values[num_needles:]]


def _retrieve_text(request: QuizRequest, rng: Random) -> Quiz:
    attribute = rng.choice(_ATTRIBUTES)
    people = _draw_people(request, rng)
    numbers = [str(number) for number in rng.sample(_NUMBERS, request.num_needles + NUM_OPTIONS)]
    asked = rng.randrange(request.num_needles)
    wrong = _draw_wrong(numbers, numbers[asked], request.num_needles, rng)
    text = f"What is the {attribute} of {people[asked]}?"
    return Quiz(
        tuple(f"The {attribute} of {name} is {number}." for name, number in zip(people, numbers, strict=False)),
        _ask_for_text(request, text, numbers[asked], (asked,), wrong=wrong, num_answers=len(_NUMBERS)),
    )


def _count_text(request: QuizRequest, rng: Random) -> Quiz:
    thing, other = rng.sample(_half(_THINGS, request.split), 2)
    places = rng.sample(_half(_PLACES, request.split), request.num_needles)
    counts = [rng.randint(2, _MOST_COUNTED) for _ in places]
    num_asked = request.num_needles - 1
    things = [thing] * num_asked + [other]
    order = rng.sample(range(request.num_needles), request.num_needles)
    return Quiz(
        tuple(f"At the {places[n]}, the warden counted {counts[n]} {things[n]}." for n in order),
        Question(
            f"The text says at some places how many {thing} the warden counted there. How many were they at each of "
            "these places? Answer with a JSON list of numbers in the order of the text.",
            answer=[counts[n] for n in order if n < num_asked],
            asked=tuple(place for place, n in enumerate(order) if n < num_asked),
        ),
    )


def _reason_text(request: QuizRequest, rng: Random) -> Quiz:
    number = request.num_needles
    people = _draw_people(request, rng)
    houses = rng.sample(_half(_HOUSES, request.split), number)
    towns = rng.sample(_half(_TOWNS, request.split), number + NUM_OPTIONS)
    keys = [f"{person} holds the key to the {house} House." for person, house in zip(people, houses, strict=True)]
    places = [f"The {house} House stands in {town}." for house, town in zip(houses, towns, strict=False)]
    order = rng.sample(range(2 * number), 2 * number)
    chain = rng.randrange(number)
    wrong = _draw_wrong(towns, towns[chain], number, rng)
    asked = tuple(place for place, n in enumerate(order) if n % number == chain)
    text = f"In which town stands the house to which {people[chain]} holds the key?"
    num_answers = len(_half(_TOWNS, request.split))
    return Quiz(
        tuple((keys + places)[n] for n in order),
        _ask_for_text(request, text, towns[chain], asked, wrong=wrong, num_answers=num_answers),
    )


def _draw_cards(number: int, rng: Random) -> list[Card]:
    """Cards of different kinds and numbers."""
    kinds = rng.sample(_KINDS, number)
    numbers = rng.sample(_CARD_NUMBERS, number)
    return [Card(color, shape, number=n) for (color, shape), n in zip(kinds, numbers, strict=True)]


def _retrieve_image(request: QuizRequest, rng: Random) -> Quiz:
    cards = _draw_cards(request.num_needles, rng)
    asked = rng.randrange(request.num_needles)
    card, right = cards[asked], request.right
    if request.form == "free":
        text = f"One of the pictures carries a card with a {card.kind}. Which number is on that card?"
        return Quiz(tuple(cards), Question(text, str(card.number), (asked,), chance=1 / len(_CARD_NUMBERS)))
    shown = {(other.color, other.shape) for other in cards}
    rest = [kind for kind in _KINDS if kind not in shown]
    numbers = [number for number in _CARD_NUMBERS if number not in {other.number for other in cards}]
    drawn = zip(rng.sample(rest, NUM_OPTIONS - 1), rng.sample(numbers, NUM_OPTIONS - 1), strict=True)
    wrong = [Card(color, shape, number=number) for (color, shape), number in drawn]
    text = "Which of the following cards is on one of the pictures above?"
    question = Question(text, card.kind, (asked,), (None,) * NUM_OPTIONS, right, 1 / NUM_OPTIONS)
    return Quiz(tuple(cards), question, (*wrong[:right], card, *wrong[right:]))


def _count_image(request: QuizRequest, rng: Random) -> Quiz:
    (color, shape), (other_color, other_shape) = rng.sample(_KINDS, 2)
    other = rng.randrange(request.num_needles)
    counts = [rng.randint(1, _MOST_FIGURES) for _ in range(request.num_needles)]
    cards = [
        Card(other_color, other_shape, count=count) if number == other else Card(color, shape, count=count)
        for number, count in enumerate(counts)
    ]
    asked = tuple(number for number in range(request.num_needles) if number != other)
    text = (
        f"Some of the pictures carry a card with one or more figures of the kind {color} {shape}. How many are on each "
        "of these cards? Answer with a JSON list of numbers in the order of the pictures."
    )
    return Quiz(tuple(cards), Question(text, [counts[number] for number in asked], asked))


def _reason_image(request: QuizRequest, rng: Random) -> Quiz:
    cards = _draw_cards(request.num_needles, rng)
    first, second = sorted(rng.sample(range(request.num_needles), 2))
    total = (cards[first].number or 0) + (cards[second].number or 0)
    near = [value for value in range(2 * _CARD_NUMBERS.start, 2 * _CARD_NUMBERS.stop - 2) if value != total]
    wrong = [str(value) for value in rng.sample(near, NUM_OPTIONS - 1)] if request.form == "choice" else []
    text = (
        f"One picture carries a card with a {cards[first].kind}, another one a card with a {cards[second].kind}. What "
        "is the sum of the numbers on these two cards?"
    )
    question = _ask_for_text(request, text, str(total), (first, second), wrong=wrong, num_answers=len(near) + 1)
    return Quiz(tuple(cards), question)


TASKS: dict[str, Callable[[QuizRequest, Random], Quiz]] = {
    "retrieval-text": _retrieve_text,
    "counting-text": _count_text,
    "reasoning-text": _reason_text,
    "retrieval-image": _retrieve_image,
    "counting-image": _count_image,
    "reasoning-image": _reason_image,
}

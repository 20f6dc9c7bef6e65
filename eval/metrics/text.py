"""What metrics share: reading answers, F1 of words, and steps of normalisation that benchmarks combine differently.

The longer rules (punctuation, periods, number words, articles, contractions) are those of GT-Vision-Lab/VQA. Its quirks
are kept, because scores are comparable only with them.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
MAX_REMOVED_PERIODS = 32  # the official code passes a regex flag of this value where a count is expected

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_NUMBER_WORDS = f"{_UNITS} eighteen nineteen twenty".split()
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS_TO_TEN: Mapping[str, str] = {"none": "0", **{word: str(n) for n, word in enumerate(_NUMBER_WORDS[:11])}}
NUMBERS_TO_NINETY: Mapping[str, str] = {
    **{word: str(n) for n, word in enumerate(_NUMBER_WORDS)},
    **{word: str(10 * n) for n, word in enumerate(_TENS, start=3)},
}

# Written form = form with apostrophes. Capitalised keys never match lower-cased text; the official table has them.
_CONTRACTION_TABLE = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
    didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't
    havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've
    I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am
    mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've
    neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at
    shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't
    shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
    somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd someoned've=someone'd've
    someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd
    somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's thered=there'd
    thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
    they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've
    we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's
    whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's
    whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
    wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've
    y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're
    youve=you've
"""
CONTRACTIONS: Mapping[str, str] = dict(pair.split("=") for pair in _CONTRACTION_TABLE.split())


def read_text(value: object) -> str:
    """Text of an answer field: empty for None, numbers as they are written."""
    return "" if value is None else str(value)


def read_golds(answer: object) -> list[str]:
    """Accepted answers of a field that holds one of them or a list; empty for None."""
    if isinstance(answer, (list, tuple)):
        return [read_text(gold) for gold in answer]
    return [] if answer is None else [read_text(answer)]


def find_first_letter(response: str | None, *, letters: str, prefixes: Sequence[str]) -> str:
    """The first of some capital letters after all known prefixes are deleted (`Dogs` is D); empty if there is none."""
    said = read_text(response).strip()
    for prefix in prefixes:
        said = said.replace(prefix, "")
    return next((sign for sign in said if sign in letters), "")


def score_letter(answer: object, letter: str) -> float:
    """1 if a letter is an accepted answer; no letter (empty) is wrong."""
    return float(bool(letter) and letter in read_golds(answer))


def flatten_whitespace(text: str) -> str:
    """Replace newlines and tabs by spaces and strip the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def split_possessives(text: str) -> str:
    """First step of the TextVQA (M4C) scorer: lower case, no `,` and `?`, a space before `'s`, stripped."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def remove_punctuation(text: str) -> str:
    """Delete punctuation marks or replace them by spaces, then delete periods that no digit follows.

    A mark is deleted if it touches a space somewhere in `text`, or if `text` has a comma between digits; otherwise
    each occurrence becomes a space.
    """
    has_grouped_digits = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches_space or has_grouped_digits else " ")
    return re.sub(r"\.(?!\d)", "", cleaned, count=MAX_REMOVED_PERIODS)


def normalise_words(text: str, numbers: Mapping[str, str]) -> str:
    """Lower case, digits for number words, no articles, apostrophes restored, words joined by one space.

    Benchmarks differ in `numbers`: `NUMBERS_TO_TEN` or `NUMBERS_TO_NINETY`.
    """
    words = (numbers.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_m4c(text: str) -> str:
    """All steps of the TextVQA (M4C, EvalAI) scorer."""
    return normalise_words(remove_punctuation(flatten_whitespace(split_possessives(text))), NUMBERS_TO_TEN)


def drop_punctuation(text: str) -> str:
    """The text without ASCII's punctuation marks."""
    return text.translate(_ASCII_PUNCTUATION)


def blank_articles(text: str) -> str:
    """A space for each English article in lower case."""
    return re.sub(r"\b(a|an|the)\b", " ", text)


def measure_word_f1(golds: Sequence[str], saids: Sequence[str]) -> float:
    """F1 of the words of two texts, each counted as often as it occurs; 0 without a common word."""
    num_common = (Counter(golds) & Counter(saids)).total()
    return 2 * num_common / (len(golds) + len(saids)) if num_common else 0.0


def contains_word(text: str, word: str) -> bool:
    """Whether `word` (any string) occurs in `text` between two word boundaries."""
    return re.search(rf"\b{re.escape(word)}\b", text) is not None

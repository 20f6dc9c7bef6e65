"""Porter's stemmer (1980) with the changes of NLTK, whose stems ROUGE scores are computed on.

    stem("relational") == "relat"     stem("skies") == "sky" (NLTK's list)     stem("enjoy") == "enjoy" (NLTK's rule)

A word is a run of consonants (c) and vowels (v); its measure is how often a consonant follows a vowel. Each step looks
for the first suffix in its table that the word has and replaces it, if what remains is long enough.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

_VOWELS = frozenset("aeiou")
_IRREGULAR = {
    **{"skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "howe": "howe"},
    **{"innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing"},
    **{"cannings": "canning", "canning": "canning"},
    **{"proceed": "proceed", "exceed": "exceed", "succeed": "succeed"},
}
_PLURALS = {"sses": "ss", "ies": "i", "ss": "ss", "s": ""}
_DOUBLE_SUFFIXES = {
    **{"ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al"},
    **{"entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al"},
    **{"iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble"},
    **{"fulli": "ful"},
}
_ADJECTIVES = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_ENDINGS = {
    **dict.fromkeys(("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou"), ""),
    **dict.fromkeys(("ism", "ate", "iti", "ous", "ive", "ize"), ""),
}


@lru_cache(maxsize=100_000)  # texts repeat their words
def stem(word: str) -> str:
    """The stem of a word in lower case."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _cut_plural(word)
    word = _cut_past(word)
    if word.endswith("y") and len(word) > 2 and _find_vowels(word[:-1])[-1] == "c":
        word = f"{word[:-1]}i"
    word = _cut_double_suffix(word)
    word = _replace(word, _ADJECTIVES, lambda suffix, rest: _measure(rest) > 0)
    word = _replace(
        word, _ENDINGS, lambda suffix, rest: _measure(rest) > 1 and (suffix != "ion" or rest[-1] in ("s", "t"))
    )
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _cut_plural(word: str) -> str:
    if len(word) == 4 and word.endswith("ies"):
        return word[:-1]
    return _replace(word, _PLURALS, lambda suffix, rest: True)


def _cut_past(word: str) -> str:
    """Without `ed` or `ing`, and with the `e` or single consonant that the verb has."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    suffix = next((suffix for suffix in ("ed", "ing") if word.endswith(suffix)), "")
    rest = word[: len(word) - len(suffix)]
    if not suffix or "v" not in _find_vowels(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return f"{rest}e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _find_vowels(rest)[-1] == "c":
        return rest if rest[-1] in "lsz" else rest[:-1]
    return f"{rest}e" if _measure(rest) == 1 and _ends_short(rest) else rest


def _cut_double_suffix(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _cut_double_suffix(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replace(word, _DOUBLE_SUFFIXES, lambda suffix, rest: _measure(rest) > 0)


def _replace(word: str, suffixes: dict[str, str], is_allowed: Callable[[str, str], bool]) -> str:
    """The word with its first suffix of the table replaced; unchanged where that is not allowed."""
    for suffix, replacement in suffixes.items():
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + replacement if is_allowed(suffix, rest) else word
    return word


def _find_vowels(word: str) -> str:
    """`c` or `v` for each letter; `y` is a vowel after a consonant."""
    return "".join(_classify(word))


def _classify(word: str) -> Iterator[str]:
    previous = "v"
    for letter in word:
        previous = "v" if letter in _VOWELS or (letter == "y" and previous == "c") else "c"
        yield previous


def _measure(word: str) -> int:
    return _find_vowels(word).count("vc")


def _ends_short(word: str) -> bool:
    """Whether the last syllable is short: `hop`, `wil`, and a word of two letters such as `us`."""
    kinds = _find_vowels(word)
    return (kinds.endswith("cvc") and word[-1] not in "wxy") or kinds == "vc"

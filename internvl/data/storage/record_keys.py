"""Record keys: those that a record may have, and other names that people give them.

Unknown keys are allowed, since published data sets hold many. A key that only looks like one of ours is not: the record
would be used, without its pictures.
"""

import difflib
import re
from collections.abc import Mapping

RECORD_KEYS = ("conversations", "image", "video", "clip")

_OTHER_NAMES = {
    "image": r"(image|img|picture|pic|photo)s?",
    "video": r"(video|vid|movie|film)s?",
    "conversations": r"(conversation|conv|message|dialogu?e?|turn|chat)s?",
}
_ENDING = r"[ _-]?((path|file|name|url|list)s?)?\d*"
_TYPO_RATIO = 0.8  # of difflib: one letter wrong, left out, or two swapped, in a word of five


def guess_key(key: str) -> str | None:
    """The key of ours that another one probably stands for; None: it looks like none of them."""
    lower = key.lower()
    for name, pattern in _OTHER_NAMES.items():
        if re.fullmatch(pattern + _ENDING, lower):
            return name
    near = [name for name in RECORD_KEYS if abs(len(name) - len(lower)) <= 1]
    return next(iter(difflib.get_close_matches(lower, near, n=1, cutoff=_TYPO_RATIO)), None)


def find_wrong_key(record: Mapping[str, object]) -> tuple[str, str] | None:
    """(key, key of ours that it probably stands for) of a record that lacks the latter; None: there is no such key.

    A record that has a picture or a video lacks neither: many note where it is from.
    """
    given = {key for key in RECORD_KEYS if record.get(key)}
    if given & {"image", "video"}:
        given |= {"image", "video"}
    for key, value in record.items():
        meant = guess_key(key) if key not in RECORD_KEYS and value and isinstance(value, str | list | dict) else None
        if meant is not None and meant not in given:
            return key, meant
    return None

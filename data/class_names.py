"""Class names that may be meant to be one: a typing error is a class of its own to every format."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import combinations

SHORTEST = 3  # letters: "a" and "A" may be two classes; of a word with two letters that changed places, too
SHORTEST_PLURAL = 4  # … of a word with another's plural s
SHORTEST_WORD = 8  # of which one letter may be a typing error: "car" and "cat" are two classes


def close_to(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that is likely to be meant by `name`, which is not among them; of class1 never class2."""
    by_plain = {_plain(each): each for each in names if _digits(each) == _digits(name)}
    found = get_close_matches(_plain(name), by_plain, n=1, cutoff=0.85)  # with_mask and without_mask: 0.84
    return by_plain[found[0]] if found else None


def meant(name: str, names: Sequence[str]) -> str:
    """The name as messages quote it, with what it may be meant to be: `'rbc' (is it 'RBC'?)`."""
    close = close_to(name, names)
    return f"{name!r}" + (f" (is it {close!r}?)" if close else "")


def alike(names: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(index, index of a later name, what they differ in) of names that may be one and the same, typed in two ways.

    That is in upper and lower case, spaces, underscores and hyphens, in the order of two letters, in one letter within
    a long word, or its plural: never in digits, nor in a word's first letter (typical, atypical), its last (classA,
    classB) or another one of short words.
    """
    by_rest: dict[str, list[int]] = {}  # by the name without any one letter: a thousand names are half a million pairs
    for index, name in enumerate(names):
        plain = _plain(name)
        for rest in {plain, *(plain[:at] + plain[at + 1 :] for at in range(len(plain)))}:
            by_rest.setdefault(rest, []).append(index)
    for first, second in sorted({pair for same in by_rest.values() for pair in combinations(same, 2)}):
        if difference := _difference(names[first], names[second]):
            yield first, second, difference


def _plain(name: str) -> str:
    return "".join(_words(name))


def _digits(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def _words(name: str) -> list[str]:
    return re.split(r"[\s_-]+", name.strip().casefold())


def _difference(one: str, other: str) -> str | None:
    if _digits(one) != _digits(other):
        return None
    if _plain(one) == _plain(other):
        return "case, spaces or underscores" if len(_plain(one)) >= SHORTEST else None
    pairs = _words(one), _words(other)
    if len(pairs[0]) != len(pairs[1]):
        return None
    differing = [pair for pair in zip(*pairs, strict=True) if pair[0] != pair[1]]
    if len(differing) != 1 or not _one_letter_apart(*differing[0]):
        return None
    return "the order of two letters" if sorted(_plain(one)) == sorted(_plain(other)) else "one letter"


def _one_letter_apart(one: str, other: str) -> bool:
    """Whether a letter within the word is missing, another one, or in the place of its neighbour; or a plural's s."""
    short, long = sorted((one, other), key=len)
    if len(short) < SHORTEST or len(long) - len(short) > 1 or not (short + long).isalpha():
        return False
    start = next((at for at, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    if start == len(short):
        return long[-1] == "s" and len(short) >= SHORTEST_PLURAL
    if start == 0:
        return False
    if short[start : start + 2] == long[start : start + 2][::-1] and short[start + 2 :] == long[start + 2 :]:
        return True  # two letters have changed places
    if len(short) < SHORTEST_WORD:
        return False
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    return short[start + 1 :] == long[start + 1 :] and start < len(short) - 1

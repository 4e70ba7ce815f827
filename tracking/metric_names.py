"""What a metric may be meant to be that no checkpoint has."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def metrics_meant(word: str, known: Iterable[str]) -> str:
    """Of a metric that there is not the close ones, and the overall ones of those that there are.

    Those of classes, intervals and kinds of errors would fill a screen: `val/AP/CLASS`, `eval/DATA/SPLIT/AP_low` …
    """
    names = sorted(known)
    close = get_close_matches(word, names, n=3)
    usual = [name for name in names if re.fullmatch("val/[^/]+", name)]
    more = f" and {len(names) - len(usual)} of classes and evaluations" if len(usual) < len(names) else ""
    return (f"is it {' or '.join(close)}? " if close else "") + f"there are: {', '.join(usual) or 'none'}{more}"

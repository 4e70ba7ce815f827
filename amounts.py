"""Options whose values are words: `10m`, `20GB`, `25%`, `best,every:5`. Each is a number, or a ConfigError."""

import math
import re

from commandline import ConfigError
from retention import parse_keep


def parse_interval(text: str) -> tuple[str, float]:
    """`500` → ("steps", 500), `10m` → ("seconds", 600)."""
    number, unit = (text[:-1], "seconds") if text.endswith("m") else (text, "steps")
    try:
        value = float(number) * (60 if unit == "seconds" else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf or (unit == "steps" and value != int(value)):
        raise ConfigError(f"--checkpoint-every takes steps (500) or minutes (10m), not {text!r}")
    return unit, value


def require_keep(text: str) -> None:
    """ConfigError when --keep says nothing."""
    try:
        parse_keep(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def parse_size(text: str, flag: str = "--disk-budget", others: str = "") -> int:
    """`20GB` → 20 000 000 000 bytes; GiB are counted in 1024s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])(i?)B", text, re.IGNORECASE)
    size = float(match[1]) * (1024 if match[3] else 1000) ** {"M": 2, "G": 3, "T": 4}[match[2].upper()] if match else 0
    if size < 1:
        raise ConfigError(f"{flag} takes {others}a size such as 20GB, 500MB or 1.5TB, not {text!r}")
    return int(size)


def cache_bytes(text: str, available: int) -> int:
    """`4GB` as parse_size, `25%` of the bytes that are available; ConfigError where it is more than these."""
    if share := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text):
        if not 0 < float(share[1]) < 100:
            raise ConfigError(f"--cache takes a share above 0% and below 100% of the available memory, not {text!r}")
        return int(available * float(share[1]) / 100)
    size = parse_size(text, "--cache", "none, a share of the available memory such as 25%, or ")
    if size >= available:
        there = f"the {available / 1e9:.1f} GB of memory that are available"
        raise ConfigError(f"--cache {text} is more than {there}: give less, such as --cache 25%")
    return size

"""How every script reads its command line, and how it ends. The only door to tyro."""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

try:
    import tyro
    from tyro import _errors as refusals  # not public, so requirements.txt holds tyro to one version
except ModuleNotFoundError:
    print("error: the packages are missing. In a new shell first: . .venv/bin/activate (README.md)", file=sys.stderr)
    raise SystemExit(2) from None


# Threads that wait by spinning make every step several times slower as soon as another process needs a core.
# It must be set before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Positional = tyro.conf.Positional
Repeated = tyro.conf.UseAppendAction
# Optional values: the help says in words what stands for an open one, so the default None is not shown.
Text = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Regex = Annotated[str | None, tyro.conf.arg(metavar="REGEX", help_behavior_hint="")]
Int = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Float = Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Place = Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Ints = Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N …", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …", help_behavior_hint="")]
Run = Annotated[str | None, tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")]
Size = Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")]
Runs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[RUN …]", help_behavior_hint="")]
OtherRuns = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN …", help_behavior_hint="")]
Registered = Annotated[str | None, tyro.conf.arg(metavar="NAME@ALIAS", help_behavior_hint="")]
Data = Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="")]
Export = Annotated[tuple[str, Path] | None, tyro.conf.arg(metavar="coco PATH", help_behavior_hint="")]
Uri = Annotated[str | None, tyro.conf.arg(metavar="URI", help_behavior_hint="")]
Classes = Annotated[str | None, tyro.conf.arg(metavar="coco|FILE", help_behavior_hint="")]
Norm, Optimizer, Schedule, Amp = (
    Annotated[Literal[words] | None, tyro.conf.arg(metavar=f"{{{','.join(words)}}}", help_behavior_hint="")]
    for words in (("frozen", "batch"), ("sgd", "adamw"), ("multistep", "cosine"), ("off", "bf16", "fp16"))
)
Sources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE …", help_behavior_hint="")]


class ConfigError(ValueError):
    """A wrong flag, or flags that contradict each other."""

    exit_code = 2


def parse(options: type, arguments: Sequence[str] | None = None, default: Any = None) -> Any:
    """The options from the command line; a ConfigError where they are wrong."""
    extra = {} if default is None else {"default": default}
    given = sys.argv[1:] if arguments is None else arguments
    if "" in given:
        raise ConfigError("One of the arguments is empty: is a shell variable not set?")
    hints = {flag(name): hint for name, hint in get_type_hints(options, include_extras=True).items()}
    _require_values(hints, given)
    # No "no-…" twins and no colours in pipes: the help stays one line an option.
    marks = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)

    def refuse(event: refusals.ParseErrorEvent) -> None:
        if message := _refusal(event, list(hints)):
            raise ConfigError(message) from None

    with refusals.on_parse_error(refuse):
        return tyro.cli(options, args=arguments, config=marks, **extra)


def flag(name: str) -> str:
    """`batch_size` → `--batch-size`"""
    return "--" + name.replace("_", "-")


def _require_values(hints: Mapping[str, Any], given: Sequence[str]) -> None:
    """Of options that take several values tyro lets none pass; `hints` are the annotations by flag."""
    for word, following in pairwise([*given, "--"]):
        asked = word.replace("_", "-")
        marks = getattr(hints.get(asked), "__metadata__", ())
        metavar = next((mark.metavar for mark in marks if hasattr(mark, "metavar")), None) or ""
        if metavar.endswith("…") and following.startswith("--"):
            raise ConfigError(f"{asked} needs a value: {VALUES.get(metavar, metavar)}")


# What a value is to be, where the word that the help has for it does not say.
VALUES = {"N": "a whole number", "INT": "a whole number", "N …": "whole numbers", "X": "a number", "FLOAT": "a number"}
VALUES |= {"STR": "text"}


def _refusal(event: refusals.ParseErrorEvent, flags: Sequence[str]) -> str | None:
    """What is wrong with a command line, in our words: tyro's boxes name types and classes. None leaves it to them."""
    if isinstance(event, refusals.UnrecognizedArgs):
        wrong = [word.partition("=")[0] for word in event.tokens if word.startswith("-")]
        if wrong:
            return f"There is no option {' and no '.join(meant(word, flags) for word in wrong)}. --help lists all"
        run = f" (if it is a RUN: --run {shlex.quote(event.tokens[0])})" if "--run" in flags else ""
        return f"{event.tokens[0]!r} belongs to no option{run}. --help lists all"
    if isinstance(event, refusals.MissingArgs):
        missing = " and ".join(one.arg.lowered.name_or_flags[-1] for one in event.missing_arguments)
        return f"{missing} must be given. --help tells of it"
    if isinstance(event, refusals.InstantiationFailure) and event.argument is None:
        return event.message  # a ConfigError of ours: flags that contradict each other
    if not isinstance(event, refusals.BadValue | refusals.InvalidChoice | refusals.InstantiationFailure):
        return None
    option = event.argument.lowered
    flag, metavar = option.name_or_flags[-1], str(option.metavar)
    wanted = VALUES.get(metavar, metavar)
    if isinstance(event, refusals.BadValue):
        return f"{flag} needs a value: {wanted}"
    if isinstance(event, refusals.InvalidChoice):
        return f"{flag} takes {metavar}, not {event.value!r}"
    given = " ".join(re.findall("'(.*?)'", event.message.partition("\n")[0]))
    return f"{flag} takes {wanted}, not {given!r}"


def meant(word: str, flags: Sequence[str]) -> str:
    """An option that there is not, with the one of the flags (or names) that may be meant."""
    plain = {flag.strip("-"): flag for flag in flags}
    close = get_close_matches(word.strip("-").replace("_", "-"), plain, n=1)
    return word + (f" (is it {plain[close[0]]}?)" if close else "")


def command(main: Callable[[Any], Any], read: Callable[[], Any]) -> None:
    """Run a script: `read` its options, run `main`, exit with its code; a user's mistake is one message."""
    try:
        code = main(read())
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141  # the reader of our output went away, as `head` does
        sys.stderr.close()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except Exception as error:
        code = _explained(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> int:
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        print(f"{'' if code > 128 else 'error: '}{error}", file=sys.stderr)  # above 128: stopped by a signal
        return code
    places = traceback.extract_tb(error.__traceback__)
    # The last line of this repository on the way tells more than torch's under it; in recipes/ it is the user's own.
    root = Path(__file__).resolve().parent
    here = [place for place in places if root in Path(place.filename).parents and "site-packages" not in place.filename]
    place = (here or places)[-1]
    is_own = Path(place.filename).parent == root / "recipes"
    print(f"{'error' if is_own else 'internal error'}: {type(error).__name__}: {error}", file=sys.stderr)
    then = "TRACEBACK=1 shows the whole way there" if is_own else "Please report this, with the line above"
    print(f"  at {place.filename}:{place.lineno} in {place.name}. {then}.", file=sys.stderr)
    if os.environ.get("TRACEBACK"):
        traceback.print_exception(error)
    return 70

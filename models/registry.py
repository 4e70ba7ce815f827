"""Models by name: the builders of models/detector.py, and those in recipes/, found by the name of their file."""

import contextlib
import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchvision.models.detection import FasterRCNN

from models.backbones import ModelError

ROOT = Path(__file__).resolve().parents[1]
Builder = Callable[..., FasterRCNN]
Change = Callable[[FasterRCNN], None]

_BUILDERS: dict[str, Builder] = {}
_CHANGES: dict[str, Change] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Make a builder known by name.

    A builder takes keyword arguments only (`num_classes`, background included, and what else it likes: numbers,
    strings, lists, None) and returns a Faster R-CNN with random weights. Its defaults are read from its signature.
    A name that ends in "/" is a family: its builder is given the whole name first.
    """

    def add(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return add


def variant(name: str) -> Callable[[Change], Change]:
    """Make a change of any model known by name: NAME/BASE is the model BASE, with its options, changed by the function.

    The function is given the built model with random weights, and may change whatever it likes of it.
    """

    def add(change: Change) -> Change:
        _CHANGES[name] = change
        return change

    return add


@dataclass(frozen=True)
class Found:
    """What a name stands for: a base model by its own name, its builder, and what changes it, innermost first."""

    base: str
    builder: Builder
    changes: tuple[Change, ...] = ()


def find(name: str) -> Found:
    """The model of that name; a recipe is imported when it is first asked for. ModelError when there is none."""
    first, _, rest = name.partition("/")
    if not _is_known(name):
        _import_recipe(first)
    if first in _CHANGES and rest:
        found = find(rest)
        return Found(found.base, found.builder, (*found.changes, partial(_change, first)))
    if f"{first}/" in _BUILDERS:
        return Found(name, partial(_BUILDERS[f"{first}/"], name))
    if name in _BUILDERS:
        return Found(name, _BUILDERS[name])
    raise ModelError(_why_unknown(name, first))


def known_models() -> tuple[str, ...]:
    """Names of the models that can be built; NAME stands for any name of that family, BASE for any model."""
    builders = (f"{name}NAME" if name.endswith("/") else name for name in _BUILDERS)
    return (*builders, *(f"{name}/BASE" for name in _CHANGES))


def recipe_files() -> dict[str, Path]:
    """The files of recipes/, by the names that models have from them."""
    return {f"recipes.{file.stem}": file for file in sorted((ROOT / "recipes").glob("*.py"))}


def recipes_of(name: str) -> list[Path]:
    """The files of recipes/ that make the model of that name."""
    files = recipe_files()
    return [files[word] for word in name.split("/") if word in files]


@contextlib.contextmanager
def naming_the_recipe(module: str) -> Iterator[None]:
    """Make one ModelError of whatever goes wrong in a recipe, with the line of its file."""
    file = recipe_files().get(module)
    try:
        yield
    except Exception as error:  # a researcher's own code may raise anything
        if isinstance(error, ModelError) or file is None:
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = f", line {lines[-1]}" if lines else ""  # a syntax error says its own
        raise ModelError(f"recipes/{file.name}{line}: {type(error).__name__}: {error}") from error


def _is_known(name: str) -> bool:
    first = name.partition("/")[0]
    return first in _CHANGES or f"{first}/" in _BUILDERS or name in _BUILDERS


def _import_recipe(module: str) -> None:
    # A stranger's checkpoint names its builder. That name is looked up among the files which the owner of this
    # repository put in recipes/; it never becomes a path, nor a module that Python searches for.
    file = recipe_files().get(module)
    if file is None or module in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module, file)
    sys.modules[module] = importlib.util.module_from_spec(spec)
    try:
        with naming_the_recipe(module):
            spec.loader.exec_module(sys.modules[module])
    except BaseException:
        for half_made in (sys.modules, _BUILDERS, _CHANGES):
            half_made.pop(module, None)
        raise


def _change(module: str, model: FasterRCNN) -> None:
    with naming_the_recipe(module):
        _CHANGES[module](model)


def _why_unknown(name: str, first: str) -> str:
    if first in _CHANGES:
        return f"{first} changes another model: name that too, as in {first}/timm/resnet18"
    if first in _BUILDERS:
        return f"{first} is a model by itself and changes no other: --model {first}"
    file = f"recipes/{first.removeprefix('recipes.')}.py"
    if first in recipe_files():
        how = "@variant(__name__), @backbone(__name__) or @register(__name__)"
        return f"{file} makes no model of its own name: decorate a function in it with {how}"
    if first.startswith("recipes."):
        kept = f"A run that was trained with it has it among its artifacts, as code/{file}"
        return f"The model {name} needs the file {file}, which is not here{_near(first, recipe_files(), 0.8)}. {kept}"
    known = f"known: {', '.join(known_models())}, and files in recipes/"
    return f"There is no model named {name!r}{_near(name, _BUILDERS, 0.4)} ({known})"


def _near(name: str, known: Iterable[str], cutoff: float) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    return f"; near it: {', '.join(near)}" if near else ""

"""A store whose folder was moved, renamed or copied: mlflow's database names places of artifacts in full, as they were.

A store FOLDER/mlflow.db keeps its artifacts under FOLDER/mlartifacts. Imports no mlflow: status.py asks here too.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tracking.connection import STORE_LOCK_SECONDS, local_folder, read_database, sqlite_path
from tracking.errors import StoreError, StoreMoved

ARTIFACTS = "mlartifacts"
MLFLOWS_OWN = "mlruns"  # where mlflow puts the artifacts of its experiment "Default"
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


@dataclass(frozen=True)
class Home:
    """The folder of an sqlite store, and those that its database still names from before a move or a copy."""

    folder: Path
    database: str  # the file's name
    former: tuple[Path, ...]

    def present(self, place: Path) -> Path:
        """Where a place of before the move is now; any other place as it is."""
        for former in self.former:
            for kind in (ARTIFACTS, MLFLOWS_OWN):
                if place.is_relative_to(former / kind):
                    return self.folder / kind / place.relative_to(former / kind)
        return place

    def present_uri(self, uri: str | None) -> str | None:
        """The store's URI where `uri` is the one that it had before; any other as it is."""
        return self.uri if uri in [_uri(former / self.database) for former in self.former] else uri

    @property
    def uri(self) -> str:
        return _uri(self.folder / self.database)

    def require_in_place(self) -> None:
        """StoreMoved where what is written now would go to a folder from before the move."""
        if self.former:
            raise StoreMoved(
                f"This store was moved or copied to {self.folder} from {' and '.join(map(str, self.former))}, and its "
                "database would have new files written there. Mend it: python relocate.py"
            )


def home_of(uri: str, seconds: float = STORE_LOCK_SECONDS) -> Home | None:
    """The home of an sqlite store that is there, None of any other; waits so long for a writer."""
    database = sqlite_path(uri)
    if database is None or not database.exists():
        return None
    database = database.resolve()
    rows = read_database(uri, "SELECT DISTINCT artifact_location AS place FROM experiments", seconds=seconds)
    places = [local_folder(row["place"]) for row in rows or () if row["place"]]
    folders = [place for place in places if place is not None and place.parent.name == ARTIFACTS]
    former = [place.parent.parent for place in folders if _is_left_behind(place, database)]
    return Home(database.parent, database.name, tuple(dict.fromkeys(former)))


def _is_left_behind(place: Path, database: Path) -> bool:
    """Whether an experiment's folder is one of before a move or a copy, not one that somebody chose."""
    here, former = database.parent / ARTIFACTS, place.parent.parent
    if place.parent == here or (here.exists() and place.parent.exists() and place.parent.samefile(here)):
        return False
    return (here / place.name).is_dir() or not former.exists() or (former / database.name).exists()


@contextlib.contextmanager
def mended(home: Home, backup: Path) -> Iterator[dict[str, int]]:
    """Let every place lead home, in one transaction that ends with the block; how many changed, by table.

    A copy of the database as it was is put at `backup` first. StoreError where another process keeps writing.
    """
    path = home.folder / home.database
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=STORE_LOCK_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            with (
                contextlib.closing(sqlite3.connect(path)) as reader,
                contextlib.closing(sqlite3.connect(backup)) as copy,
            ):
                reader.backup(copy)
            yield {table: _mend(database, home, table, columns) for table, columns in PLACES.items()}
            database.execute("COMMIT")
    except sqlite3.Error as error:
        raise StoreError(f"The tracking store {path} could not be mended, and is as it was: {error}") from error


def changes(home: Home) -> dict[str, int]:
    """How many places `mended` would change, by table."""
    with contextlib.closing(sqlite3.connect(f"{(home.folder / home.database).as_uri()}?mode=ro", uri=True)) as database:
        return {
            table: len({row for column in columns for row, _ in _led_home(database, home, table, column)})
            for table, columns in PLACES.items()
        }


def left_behind(home: Home) -> int:
    """How many checkpoints have their files where the store was, and none under its home."""
    rows = read_database(home.uri, "SELECT artifact_location AS place FROM logged_models", seconds=STORE_LOCK_SECONDS)
    places = [local_folder(row["place"]) for row in rows or ()]
    return sum(place.is_dir() and not home.present(place).is_dir() for place in places if place is not None)


def _mend(database: sqlite3.Connection, home: Home, table: str, columns: tuple[str, ...]) -> int:
    changed = set()
    for column in columns:
        led = _led_home(database, home, table, column)
        database.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", [(to, row) for row, to in led])
        changed |= {row for row, _ in led}
    return len(changed)


def _led_home(database: sqlite3.Connection, home: Home, table: str, column: str) -> list[tuple[int, str]]:
    """(row, new place) of every place that leads to where the store was."""
    led = []
    for row, place in database.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall():
        folder = local_folder(place)
        if folder is not None and (now := home.present(folder)) != folder:
            led.append((row, now.as_uri() if place.startswith("file:") else str(now)))
    return led


def _uri(database: Path) -> str:
    return f"sqlite:///{database}"

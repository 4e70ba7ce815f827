"""Where mlflow is imported (quietly, with short timeouts), and what to say when a store is out of reach."""

import errno
import fcntl
import logging
import os
import sqlite3
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tracking.errors import RunUnknown, StoreError, StoreFull

SERVER_PROBE_SECONDS = 4.0
STORE_LOCK_SECONDS = 60.0
SQLITE_FULL = "database or disk is full"

# Set before mlflow is imported, whatever the user has: a colleague's run must not execute code here.
ENVIRONMENT = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
# Set before mlflow is imported, and only where the user has not: mlflow's own defaults block for four minutes when a
# server is gone. The timeout has to leave a server time to hand a big upload on to its object storage.
ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout carries the scripts' results
}
# Each says at length what the sender notes in one line, or what only a developer of mlflow needs to know.
QUIET_LOGGERS = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "mlflow.store.model_registry.abstract_store": logging.WARNING,
    "mlflow.utils.rest_utils": logging.ERROR,
    "urllib3.connectionpool": logging.ERROR,
}


def store_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, else the repository's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(root).resolve() / 'mlflow.db'}"


def import_mlflow():
    """mlflow, with this project's defaults for its environment variables and its chatter turned down."""
    os.environ.update(ENVIRONMENT)
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name, level in QUIET_LOGGERS.items():
        logger = logging.getLogger(name)
        if logger.level != level:  # setting it walks through every logger of the process
            logger.setLevel(level)
    import mlflow

    return mlflow


def connect(uri: str):
    """An MlflowClient whose store has answered once; StoreError within seconds where it does not."""
    database = sqlite_path(uri)
    probe(uri)
    if database is not None and not database.parent.is_dir():
        raise StoreError(
            f"No folder {database.parent} for the tracking store {uri}. Create it: mkdir -p {database.parent}"
        )
    mlflow = import_mlflow()
    from sqlalchemy.exc import SQLAlchemyError  # mlflow wraps these in its calls, but not while it opens a database

    try:
        with _first_access(database):
            client = mlflow.MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        if is_full(error):
            raise _failure(error, f"The tracking store {uri} does not open") from error
        raise StoreError(_unreachable(uri, first_line(error))) from error
    return client


@contextmanager
def failures(uri: str, what: str) -> Iterator[None]:
    """Turns mlflow's errors into ours, which say what was asked of which store."""
    mlflow = import_mlflow()
    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise RunUnknown(f"The tracking store {uri} does not know {what}: {first_line(error)}") from error
        raise _failure(error, f"The tracking store {uri} failed at {what}") from error
    except OSError as error:
        raise _failure(error, f"The tracking store {uri} failed at {what}") from error


def is_full(error: Exception) -> bool:
    """Whether mlflow's error, or the system's, says that the store's disk is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or SQLITE_FULL in str(error)


def _failure(error: Exception, what: str) -> StoreError:
    return StoreFull(f"{what}: its disk is full") if is_full(error) else StoreError(f"{what}: {first_line(error)}")


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def sqlite_path(uri: str) -> Path | None:
    """The database file of an sqlite URI; None for every other store."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.split("?")[0].split("///", 1)[-1])


def read_database(uri: str, query: str, *values: object, seconds: float) -> list[dict] | None:
    """The rows of an sqlite store, without mlflow; None of any other, and where a writer keeps it for so long."""
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return None
    address = f"file:{urllib.parse.quote(str(path))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=seconds)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query, values)]
    except sqlite3.Error:  # locked, being created, or another version's tables
        return None


def local_folder(artifact_uri: str) -> Path | None:
    """The folder on this machine that an artifact URI names; None where it names another place."""
    parts = urllib.parse.urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(artifact_uri) if not parts.scheme else None


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def probe(uri: str) -> None:
    """StoreError where a server does not answer within seconds: mlflow would wait for its whole request timeout."""
    if not is_server(uri):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_PROBE_SECONDS).close()
    except urllib.error.HTTPError as answer:  # it answers: whether it lets us in is the next question
        answer.close()
    except OSError as error:
        if not isinstance(getattr(error, "reason", error), ssl.SSLError):  # mlflow has its own settings for those
            raise StoreError(_unreachable(uri, first_line(error))) from error


def _unreachable(uri: str, reason: str) -> str:
    if not is_server(uri):
        return f"The tracking store {uri} does not open: {reason}"
    told = f"No MLflow server answers at {uri}: {reason}"
    if uri != os.environ.get("MLFLOW_TRACKING_URI"):
        return f"{told}. Start it, with the --backend-store-uri that it had"
    return (
        f"{told}. MLFLOW_TRACKING_URI names it. Start it, with the --backend-store-uri that it had,\n"
        "or train into this repository's own store (unset MLFLOW_TRACKING_URI) and deliver later: "
        f"python status.py --sync --to {uri}"
    )


@contextmanager
def _first_access(database: Path | None) -> Iterator[None]:
    """One process at a time: mlflow creates and upgrades an sqlite database without a lock of its own."""
    if database is None:
        yield
        return
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        _wait_for(lock, database)
        yield


def _wait_for(lock, database: Path) -> None:
    deadline = time.monotonic() + STORE_LOCK_SECONDS
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Another process has been opening {database} for {STORE_LOCK_SECONDS:.0f} s. "
                    f"Find it: fuser {lock.name}"
                ) from error
            time.sleep(0.05)

"""What mlflow's searches find, whole."""

from collections.abc import Callable, Iterator
from typing import Any


def every(search: Callable[..., Any], *arguments: object, **keywords: object) -> Iterator[Any]:
    """The entries that one of the client's searches finds, page after page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **keywords)
        yield from page
        token = page.token
        if not token:
            return

"""Markdown of the notes (descriptions) that the MLflow UI shows."""

from collections.abc import Iterable, Sequence

GAP = "&emsp;"  # the UI takes all styles off tables: their columns would touch


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, gap: str = GAP) -> str:
    """A Markdown table with space between its columns."""
    lines = [[f"{_plain(cell)}{gap}" for cell in row] for row in (header, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (lines[0], ["---"] * len(header), *lines[1:]))


def links(pages: Iterable[tuple[str, str]]) -> str:
    """Links to pages of the UI, each a title and its URL, wherever the UI that shows them is."""
    return ", ".join(f"[{_plain(title)}](#{url.partition('#')[2]})" for title, url in pages)


def opening(links: str, result: str) -> str:
    """What a note begins with: links, and under them the result.

    Below the second line the UI lays a veil over a note until one asks for more, and under it no link can be clicked.
    """
    return f"{links}  \n{result}" if links else result  # two spaces break the line


def _plain(text: str) -> str:
    return text.replace("|", "\\|")

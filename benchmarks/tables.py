"""Cells and rows of Markdown tables."""

from summary import Mean

BLANK = "–"


def table_row(*cells: str) -> str:
    """One row; bars within cells are escaped."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def cell(mean: Mean | None, digits: int = 3) -> str:
    """A mean with its interval, or a dash."""
    return BLANK if mean is None else mean.text(digits)

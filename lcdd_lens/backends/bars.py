"""The progress bars of transformers, held back where they say nothing.

Reading or writing a local folder takes seconds, and its bars ("Loading weights", "Writing model shards") would stand
between our own and in saved notebooks. Downloads keep theirs.
"""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def without_library_bars() -> Iterator[None]:
    """Within the block transformers and huggingface_hub show no progress bar; afterwards the user's setting holds."""
    from transformers.utils import logging as bars

    if not bars.is_progress_bar_enabled():
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()

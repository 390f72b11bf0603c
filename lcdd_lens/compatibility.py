"""Is the installed TransformerLens one that this version understands? Asked once, when the package is imported.

TransformerLens 4 removed HookedTransformer, on which the backends stand; 3.9 is the last 3.x. Reading the installed
version imports nothing, so the question costs milliseconds, and the answer comes before a stack of import errors.
"""

import importlib.metadata
import re

REQUIRED = "transformer-lens>=3.9,<4"


def require_transformer_lens() -> None:
    """Refuse a missing or unsupported TransformerLens.

    Raises:
        ImportError: says which version was found and what to install.
    """
    try:
        found = importlib.metadata.version("transformer-lens")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"lcdd_lens works on TransformerLens, which is not installed: pip install '{REQUIRED}'."
        ) from error
    if not _is_supported(found):
        reason = "4.0 removed HookedTransformer" if _release(found) >= (4,) else "older versions lack what it builds on"
        raise ImportError(
            f"lcdd_lens needs TransformerLens 3.9, and version {found} is installed ({reason}): "
            f"pip install '{REQUIRED}', in a virtual environment of its own if other packages need yours."
        )


def _is_supported(version: str) -> bool:
    return (3, 9) <= _release(version) < (4,)


def _release(version: str) -> tuple[int, ...]:
    """``"3.9.0rc1"`` -> (3, 9)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])

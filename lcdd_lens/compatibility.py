"""Is the installed TransformerLens one that this version understands? Asked once, when the package is imported.

3.9 and later 3.x have HookedTransformer and TransformerBridge; 4 has TransformerBridge alone. Reading the installed
versions imports nothing, so the question costs milliseconds, and the answer comes before a stack of import errors.
"""

import importlib.metadata
import re
import warnings

REQUIRED = "transformer-lens>=3.9,<5"
_WITH_SAE_LENS = "transformer-lens>=3.9,<4"


def require_transformer_lens() -> None:
    """Refuse a missing or unsupported TransformerLens, and warn of one that an installed sae-lens cannot use.

    Raises:
        ImportError: says which version was found and what to install.
    """
    try:
        found = importlib.metadata.version("transformer-lens")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"lcdd_lens works on TransformerLens, which is not installed: pip install '{REQUIRED}'."
        ) from error
    if not (3, 9) <= _release(found) < (5,):
        raise ImportError(
            f"lcdd_lens needs TransformerLens 3.9 or 4, and version {found} is installed: pip install '{REQUIRED}', "
            "in a virtual environment of its own if other packages need yours."
        )
    if _release(found) >= (4,) and (sae_lens := _sae_lens_for_3()):
        warnings.warn(
            f"sae-lens {sae_lens} cannot be imported beside TransformerLens {found}: pip install '{_WITH_SAE_LENS}' to "
            "use it, or pip uninstall sae-lens.",
            stacklevel=2,
        )


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has HookedTransformer."""
    return _release(importlib.metadata.version("transformer-lens")) < (4,)


def _sae_lens_for_3() -> str | None:
    """The version of an installed sae-lens that asks for TransformerLens below 4."""
    try:
        needs = importlib.metadata.requires("sae-lens") or []
        version = importlib.metadata.version("sae-lens")
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if any(re.match(r"transformer[-_]lens\b.*<\s*4(\.0)*\b", need) for need in needs) else None


def _release(version: str) -> tuple[int, ...]:
    """``"3.9.0rc1"`` -> (3, 9)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])

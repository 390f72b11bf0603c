"""Models for the eraser's tests."""

from collections.abc import Callable

import pytest

from lcdd_lens.backends import LensModel, load_model
from tests.conftest import ARCHITECTURES, tiny_hf
from tests.eraser.helpers import words
from tests.models import Pair, tiny_pair


@pytest.fixture(scope="session")
def loaded() -> Callable[[str], LensModel]:
    """Tiny models by architecture, loaded once; tests leave them as they were."""
    models: dict[str, LensModel] = {}

    def get(architecture: str) -> LensModel:
        if architecture not in models:
            models[architecture] = load_model(tiny_hf(architecture), tokenizer=words())
        return models[architecture]

    return get


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, loaded: Callable[[str], LensModel]) -> LensModel:
    return loaded(request.param)


@pytest.fixture
def llama(loaded: Callable[[str], LensModel]) -> LensModel:
    return loaded("llama")


@pytest.fixture
def pair() -> Pair:
    return tiny_pair("llama")

"""What importing the package costs and promises."""

import importlib.metadata
import subprocess
import sys
import warnings

import pytest

import lcdd_lens
from lcdd_lens import compatibility


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_torch_nor_transformer_lens() -> None:
    loaded = _python("import sys, lcdd_lens; print([m for m in ('torch', 'transformer_lens') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_every_public_name_resolves_to_an_object_of_that_name() -> None:
    for name in lcdd_lens.__all__:
        assert getattr(lcdd_lens, name).__name__ == name


def test_lazy_names_and_completion_agree_with_the_public_list() -> None:
    assert set(lcdd_lens._HOMES) == set(lcdd_lens.__all__) <= set(dir(lcdd_lens))


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modle'; public names: Behaviour"):
        _ = lcdd_lens.load_modle


@pytest.mark.parametrize("version", ["5.0.0", "5.1"])
def test_a_later_transformer_lens_is_refused_with_what_to_install(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(ImportError, match=rf"{version} is installed: pip install 'transformer-lens>=3\.9,<5'"):
        compatibility.require_transformer_lens()


def test_an_old_transformer_lens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.16.1")
    with pytest.raises(ImportError, match=r"2\.16\.1 is installed"):
        compatibility.require_transformer_lens()


def test_a_missing_transformer_lens_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"not installed: pip install .transformer-lens>=3\.9,<5"):
        compatibility.require_transformer_lens()


@pytest.mark.parametrize("version", ["3.9.0", "3.9.0rc1", "3.10.2", "4.0.0", "4.3.1"])
def test_supported_versions_pass(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [])
    compatibility.require_transformer_lens()
    assert compatibility.has_hooked_transformer() is version.startswith("3")


@pytest.mark.parametrize(
    ("versions", "needs", "warned"),
    [
        ({"transformer-lens": "4.3.0", "sae-lens": "6.54.12"}, "transformer-lens<4.0.0,>=2.16.1", True),
        ({"transformer-lens": "4.3.0", "sae-lens": "8.0"}, "transformer-lens<5,>=4", False),
        ({"transformer-lens": "4.3.0"}, "", False),
        ({"transformer-lens": "3.9.0", "sae-lens": "6.54.12"}, "transformer-lens<4.0.0,>=2.16.1", False),
    ],
)
def test_a_sae_lens_that_cannot_work_beside_transformer_lens_4_is_named_with_what_to_install(
    versions: dict[str, str], needs: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [needs] if version(name) else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compatibility.require_transformer_lens()
    assert ["pip uninstall sae-lens" in str(warning.message) for warning in caught] == [True] * warned


@pytest.mark.slow
def test_all_public_names_cost_at_most_half_a_second_beyond_transformer_lens() -> None:
    code = (
        "import time, transformer_lens, datasets\n"
        "start = time.process_time()\n"
        "import lcdd_lens\n"
        "for name in lcdd_lens.__all__: getattr(lcdd_lens, name)\n"
        "print(time.process_time() - start)"
    )
    assert float(_python(code)) <= 0.5


@pytest.mark.slow
def test_importing_changes_no_global_state_of_torch() -> None:
    state = "(torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed() * 0)"
    code = (
        f"import torch, warnings, logging\nbefore = {state}, list(warnings.filters), logging.root.level\n"
        "import transformer_lens\n"
        f"between = {state}, list(warnings.filters), logging.root.level, torch.random.get_rng_state().tolist()\n"
        "import lcdd_lens\n"
        "for name in lcdd_lens.__all__: getattr(lcdd_lens, name)\n"
        f"after = {state}, list(warnings.filters), logging.root.level, torch.random.get_rng_state().tolist()\n"
        "print(after == between)"
    )
    assert _python(code).strip() == "True"

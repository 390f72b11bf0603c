"""Progress bars of other libraries stay away where they say nothing, and come back as the user had them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging as bars

from lcdd_lens.backends import export_hf, load_model
from lcdd_lens.backends.bars import without_library_bars
from tests.conftest import tiny_hf


@pytest.fixture(params=[True, False], ids=["bars on", "bars off"])
def wanted(request: pytest.FixtureRequest) -> Iterator[bool]:
    def choose(shown: bool) -> None:
        (bars.enable_progress_bar if shown else bars.disable_progress_bar)()

    before = bars.is_progress_bar_enabled()
    choose(request.param)
    yield request.param
    choose(before)


def test_bars_are_off_within_and_as_before_afterwards(wanted: bool) -> None:
    with without_library_bars():
        assert not bars.is_progress_bar_enabled()
    assert bars.is_progress_bar_enabled() is wanted
    with pytest.raises(KeyError), without_library_bars():
        raise KeyError
    assert bars.is_progress_bar_enabled() is wanted


def test_writing_and_reading_a_folder_draws_no_bar(
    wanted: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_hf(load_model(tiny_hf("llama")), tmp_path / "model")
    load_model(tmp_path / "model")
    captured = capfd.readouterr()
    assert "it/s" not in captured.err and "%|" not in captured.err and captured.out == ""
    assert bars.is_progress_bar_enabled() is wanted

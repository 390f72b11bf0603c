"""Importing the package is cheap and changes nothing that it does not own."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import lcdd_lens

PROGRAM = """
import json, logging, random, signal, sys, time, warnings
import numpy, torch
import transformer_lens

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch generator": torch.get_rng_state().sum().item(),
        "numpy generator": int(numpy.random.get_state()[1].sum()),
        "python generator": hash(random.getstate()),
        "root handlers": [repr(handler) for handler in logging.getLogger().handlers],
        "root level": logging.getLogger().level,
        "warnings": len(warnings.filters),
        "interrupt": repr(signal.getsignal(signal.SIGINT)),
        "excepthook": repr(sys.excepthook),
        "recursion": sys.getrecursionlimit(),
    }

before, loaded, began = state(), set(sys.modules), time.process_time()
import lcdd_lens
for name in lcdd_lens.__all__:
    getattr(lcdd_lens, name)
seconds, after = time.process_time() - began, state()
print(json.dumps({
    "seconds": seconds,
    "changed": {key: [before[key], after[key]] for key in before if before[key] != after[key]},
    "imported": sorted(set(sys.modules) - loaded),
    "handlers": [repr(handler) for handler in logging.getLogger("lcdd_lens").handlers],
}))
"""


@cache
def observed(attempt: int = 0) -> dict[str, Any]:
    """What importing the package and all its public names did to a fresh interpreter that had transformer_lens."""
    done = python(PROGRAM)
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return found


def python(program: str) -> str:
    root = Path(lcdd_lens.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_public_name_adds_at_most_half_a_second_to_transformer_lens() -> None:
    # Processor time, so that a busy machine does not decide; the best of three, so that a cold disk does not either.
    assert observed()["seconds"] <= 0.5 or min(observed(attempt)["seconds"] for attempt in (1, 2)) <= 0.5


def test_importing_changes_no_global_state() -> None:
    assert observed()["changed"] == {}
    assert observed()["handlers"] == []


def test_importing_loads_no_plotting_library_and_none_of_the_optional_ones() -> None:
    packages = {name.partition(".")[0] for name in observed()["imported"]}
    assert "lcdd_lens" in packages
    assert not packages & {"matplotlib", "sae_lens", "peft", "pytest", "IPython"}


def test_the_bare_import_loads_neither_torch_nor_transformer_lens() -> None:
    program = "import sys, lcdd_lens; print(sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    assert python(program).strip() == "[]"


def test_every_public_name_is_there_and_others_are_refused_by_name() -> None:
    assert all(getattr(lcdd_lens, name) is not None for name in lcdd_lens.__all__)
    assert set(lcdd_lens.__all__) <= set(dir(lcdd_lens))
    try:
        lcdd_lens.no_such_thing  # noqa: B018
    except AttributeError as error:
        assert "no_such_thing" in str(error) and "train_lcdd" in str(error)
    else:
        raise AssertionError("an unknown name was accepted")

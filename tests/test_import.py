"""``import pelagos`` needs torch alone. Each test looks at what a fresh Python process loads."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pelagos

ROOT = Path(__file__).parents[1]
REPORT = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def distributions_loaded_by(code: str) -> set[str]:
    """Names of the distributions whose modules a fresh process holds after ``code``, the standard library left out."""
    done = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True)
    owners = importlib.metadata.packages_distributions()
    modules = set(json.loads(done.stdout)) - set(sys.stdlib_module_names)
    return {owner for module in modules for owner in owners.get(module, [])}


def requirements(name: str) -> set[str]:
    """A distribution and all that it needs, without extras; names as in their metadata."""
    found, waiting = set(), [name]
    while waiting:
        try:
            distribution = importlib.metadata.distribution(waiting.pop())
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement of another platform
        if distribution.name in found:
            continue
        found.add(distribution.name)
        lines = [line for line in distribution.requires or [] if "extra ==" not in line]
        waiting += [re.match(r"[\w.-]+", line)[0] for line in lines]
    return found


def test_the_package_itself_loads_nothing() -> None:
    before = distributions_loaded_by("pass")
    assert distributions_loaded_by("import pelagos") - before <= {"pelagos"}


@pytest.mark.parametrize("name", pelagos.__all__)
def test_every_public_name_needs_torch_alone(name: str) -> None:
    allowed = requirements("torch") | distributions_loaded_by("import torch")  # it loads what else it finds, as numpy
    assert distributions_loaded_by(f"import pelagos; pelagos.{name}") <= allowed | {"pelagos"}


def test_the_model_costs_less_than_a_second_beyond_torch() -> None:
    code = "import torch, time; t = time.process_time(); import pelagos; pelagos.Model; print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pelagos.__version__ == project["version"]


def test_public_names_are_listed_and_others_are_refused() -> None:
    assert set(pelagos.__all__) <= set(dir(pelagos))
    with pytest.raises(AttributeError, match="module 'pelagos' has no attribute 'Modle'"):
        _ = pelagos.Modle

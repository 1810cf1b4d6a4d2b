"""The rules of the house, checked on every file. Each rule is a function that yields what is wrong, one sentence each;
the second half of the file shows every rule a bad example that it must complain about.
"""

import ast
import dataclasses
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80

# What each package stands directly on; it may import all that lies below, too.
DIRECTLY_BELOW = {
    "common": (),
    "formats": ("common",),
    "ops": ("formats",),
    "model": ("ops",),
    "cache": ("model",),
    "engine": ("cache",),
    "chat": ("common",),
    "training": ("model", "chat"),
    "recipes": ("training",),
    "posttraining": ("training", "engine"),
    "billing": ("common",),
    "serving": ("engine", "chat", "billing"),
    "planner": ("model",),
    "cli": ("recipes", "posttraining", "serving", "planner"),
}
RECIPE_ADAPTER = "pelagos/chat/adapter.py"
ENVIRONMENT = "pelagos/common/env.py"
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
OPTIONAL_MODULES = {"triton", "torch_npu"}  # a module of ops/cuda or ops/npu may need them

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root)(?![\w-])")
REGISTRY_HOST = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org|index\.crates\.io")


def project_files() -> list[str]:
    """What git tracks or would; without git, all but hidden folders and build outputs."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        skipped = re.compile(r"\.(?!ci$)|__pycache__|build$|dist$|.*\.egg-info$")
        names = [path.as_posix() for path in paths if not any(skipped.match(part) for part in path.parts)]
    return sorted(name for name in names if name and (ROOT / name).is_file())


FILES = project_files()
PYTHON_FILES = [name for name in FILES if name.endswith(".py")]
PACKAGE_FILES = [name for name in PYTHON_FILES if name.startswith("pelagos/")]
MODULES = [name[:-3].removesuffix("/__init__").replace("/", ".") for name in PACKAGE_FILES if "__main__" not in name]


# --- rules on the source of one Python file ---


def imports(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, at any depth, also with ``import_module("...")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = Path(name).parts[: -node.level] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def below(package: str) -> set[str]:
    return {package}.union(*(below(lower) for lower in DIRECTLY_BELOW[package]))


def import_order(name: str, tree: ast.Module) -> Iterator[str]:
    parts = Path(name).parts
    if parts[0] != "pelagos" or parts[1] in ("__init__.py", "__main__.py"):  # of the former, see test_import.py
        return
    if parts[1] not in DIRECTLY_BELOW:
        yield f"{parts[1]} has no place in the order of packages"
        return
    for line, imported in imports(name, tree):
        words = imported.split(".")
        if words[0] != "pelagos" or words[1:] == ["__version__"]:
            continue
        package = "model" if words[1:] in ([], ["Model"]) else words[1]
        if package not in below(parts[1]):
            yield f"line {line}: {parts[1]} must not import pelagos.{package}"


def protocol_library(name: str, tree: ast.Module) -> Iterator[str]:
    for line, imported in imports(name, tree):
        if imported.split(".")[0] == "deepseek_recipe" and name.startswith("pelagos/") and name != RECIPE_ADAPTER:
            yield f"line {line}: only {RECIPE_ADAPTER} imports deepseek_recipe"


def no_pickle(name: str, tree: ast.Module) -> Iterator[str]:
    for line, imported in imports(name, tree):
        if imported.split(".")[0] in PICKLES or imported == "torch.load":
            yield f"line {line}: {imported} can run code from a file"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield f"line {node.lineno}: torch.load can run code from a file"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"line {node.lineno}: allow_pickle can run code from a file"


def lengths(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                yield f"line {node.lineno}: {node.name} has {num_lines} lines, more than {MAX_FUNCTION_LINES}"


def environment_variables(name: str, tree: ast.Module) -> Iterator[str]:
    if name == ENVIRONMENT or not name.startswith(("pelagos/", "benchmarks/")):
        return
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            for variable in re.findall(r"PELAGOS_[A-Z]\w*", node.value):
                yield f"line {node.lineno}: {variable} belongs in {ENVIRONMENT}"


SOURCE_RULES = (import_order, protocol_library, no_pickle, lengths, environment_variables)


@pytest.mark.parametrize("name", PYTHON_FILES)
def test_source(name: str) -> None:
    text = (ROOT / name).read_text()
    tree = ast.parse(text)
    problems = [problem for rule in SOURCE_RULES for problem in rule(name, tree)]
    if (num_lines := text.count("\n")) > MAX_FILE_LINES:
        problems.append(f"{num_lines} lines, more than {MAX_FILE_LINES}")
    assert problems == []


# --- rules on any text file ---


def places(name: str, text: str) -> Iterator[str]:
    if Path(name).name == "tokenizer.json":  # its vocabulary may hold any text
        return
    for number, line in enumerate(text.splitlines(), 1):
        yield from (f"{name}, line {number}: path of one machine: {match[0]}" for match in MACHINE_PATH.finditer(line))
        yield from (f"{name}, line {number}: package registry: {match[0]}" for match in REGISTRY_HOST.finditer(line))


def test_no_file_names_a_machine_or_a_registry() -> None:
    problems = []
    for name in FILES:
        data = (ROOT / name).read_bytes()
        if b"\0" not in data:
            problems += places(name, data.decode(errors="replace"))
    assert problems == []


def undated_entries(log: str) -> Iterator[str]:
    headings = re.findall(r"^## (.*)$", log, re.MULTILINE)
    if not headings:
        yield "no entry: an entry starts with a heading '## YYYY-MM-DD'"
    for heading in headings:
        try:
            date.fromisoformat(heading[:10])
        except ValueError:
            yield f"entry {heading!r} does not start with a date YYYY-MM-DD"


def test_log_entries_are_dated() -> None:
    assert list(undated_entries((ROOT / "LOG.md").read_text())) == []


def unpinned(constraints: str, project: dict) -> Iterator[str]:
    pins = set()
    for line in constraints.splitlines():
        if match := re.fullmatch(r"([\w.-]+)==[\w.!]+", line):
            pins.add(canonical(match[1]))
        elif not line.startswith("#"):
            yield f"{line!r} is no plain pin NAME==VERSION"
    yield from (f"{pin} exists for some machines only" for pin in pins if re.match("nvidia-|triton", pin))
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        name = canonical(re.match(r"[\w.-]+", line)[0])
        if name not in pins:
            yield f"{name} is a dependency without a pin"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(unpinned((ROOT / "constraints.txt").read_text(), project)) == []


# --- rules on what the code is when it runs ---

IMPORT_ALL = """
import importlib, json, logging, os, sys, threading
import torch

names, optional = json.load(sys.stdin)

def state():
    return {
        "arguments": list(sys.argv),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "logging": [logging.getLogger(name).handlers[:] for name in (None, "pelagos")],
        "log levels": [logging.getLogger(name).level for name in (None, "pelagos")],
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "torch dtype": torch.get_default_dtype(),
        "torch random state": torch.get_rng_state().tolist(),
        "torch gradients": torch.is_grad_enabled(),
        "cuda": torch.cuda.is_initialized(),
    }

before = state()
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in optional:
            raise
after = state()
print(json.dumps([what for what in before if before[what] != after[what]]))
"""


def side_effects(modules: list[str], folder: Path = ROOT) -> list[str]:
    """What importing the modules changes in a fresh process."""
    command = [sys.executable, "-c", IMPORT_ALL]
    given = json.dumps([modules, sorted(OPTIONAL_MODULES)])
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_has_no_side_effects() -> None:
    assert side_effects(MODULES) == []


def bad_fields(config: type) -> Iterator[str]:
    if not config.__dataclass_params__.frozen:
        yield f"{config.__name__} must be frozen"
    for field in dataclasses.fields(config):
        if not field.kw_only:
            yield f"{config.__name__}.{field.name} must be keyword-only"
        if not field.metadata.get("help"):
            yield f"{config.__name__}.{field.name} has no help text"


def config_classes() -> list[tuple[str, str]]:
    pattern = re.compile(r"^class (\w+(?:Config|Params))\b", re.MULTILINE)
    return [
        (name[:-3].replace("/", "."), found)
        for name in PACKAGE_FILES
        for found in pattern.findall((ROOT / name).read_text())
    ]


@pytest.mark.parametrize(("module", "name"), config_classes())
def test_config_fields_have_help(module: str, name: str) -> None:
    config = getattr(import_module(module), name)
    assert not dataclasses.is_dataclass(config) or list(bad_fields(config)) == []


def bad_ops(ops: dict) -> Iterator[str]:
    """Every op has a reference and a tolerance; every public function beside a reference is an op too."""
    references = {op.reference for op in ops.values()}
    for name, op in ops.items():
        if not op.reference.__module__.startswith("pelagos.ops.reference."):
            yield f"the reference of {name} must be in pelagos.ops.reference"
        if not 0 <= op.tolerance < 1:
            yield f"the tolerance of {name} must be from 0 to 1, got {op.tolerance}"
    for module in sorted({reference.__module__ for reference in references}):
        for name, function in inspect.getmembers(sys.modules[module], inspect.isfunction):
            if function.__module__ == module and not name.startswith("_") and function not in references:
                yield f"{module}.{name} is public and no op"


def test_every_op_has_a_reference_and_a_tolerance() -> None:
    ops = import_module("pelagos.ops.contract").OPS
    assert ops
    assert list(bad_ops(ops)) == []


def gpu_packages(distributions: list[str], has_gpu: bool, in_ci: bool) -> list[str]:
    """In CI on a machine without a GPU: installed packages that only a GPU needs, gigabytes of them."""
    return [name for name in distributions if in_ci and not has_gpu and name.lower().startswith("nvidia-")]


def test_ci_without_a_gpu_installs_no_gpu_packages() -> None:
    has_gpu = any(Path("/dev").glob("nvidia*")) or Path("/proc/driver/nvidia").exists()
    names = [str(distribution.name) for distribution in importlib.metadata.distributions()]
    assert gpu_packages(names, has_gpu, os.environ.get("CI") == "true") == []


# --- each rule complains about a bad example ---

LONG = "def f():\n" + "    x = 1\n" * 80


@pytest.mark.parametrize(
    ("rule", "name", "source", "complaint"),
    [
        (import_order, "pelagos/formats/x.py", "from pelagos.ops import contract", "must not import pelagos.ops"),
        (import_order, "pelagos/model/x.py", "def f():\n    import pelagos.engine.offline", "pelagos.engine"),
        (import_order, "pelagos/model/x.py", "from pelagos import chat", "must not import pelagos.chat"),
        (import_order, "pelagos/ops/a/x.py", "from ...model import config", "must not import pelagos.model"),
        (import_order, "pelagos/chat/x.py", "from pelagos import Model", "must not import pelagos.model"),
        (import_order, "pelagos/chat/x.py", "import pelagos", "must not import pelagos.model"),
        (import_order, "pelagos/engine/x.py", "import_module('pelagos.serving.app')", "pelagos.serving"),
        (import_order, "pelagos/serving/x.py", "import pelagos.cli", "must not import pelagos.cli"),
        (import_order, "pelagos/helpers/x.py", "", "helpers has no place in the order"),
        (protocol_library, "pelagos/chat/x.py", "from deepseek_recipe import Tokenizer", "line 1: only pelagos/chat"),
        (no_pickle, "tests/x.py", "import pickle", "pickle can run code"),
        (no_pickle, "pelagos/x.py", "torch.load('x')", "torch.load can run code"),
        (no_pickle, "pelagos/x.py", "from torch import load", "torch.load can run code"),
        (no_pickle, "benchmarks/x.py", "np.load('x', allow_pickle=True)", "allow_pickle can run code"),
        (lengths, "tests/x.py", LONG, "f has 81 lines"),
        (lengths, "tests/x.py", "class A:\n    " + LONG.replace("\n", "\n    "), "f has 81 lines"),
        (environment_variables, "pelagos/x.py", "get('PELAGOS_HOME')", "PELAGOS_HOME belongs in"),
        (environment_variables, "pelagos/x.py", "f'{a}PELAGOS_HOME'", "PELAGOS_HOME belongs in"),
    ],
)
def test_source_rules_complain(
    rule: Callable[[str, ast.Module], Iterator[str]], name: str, source: str, complaint: str
) -> None:
    [problem] = rule(name, ast.parse(source))
    assert complaint in problem


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pelagos/cli/x.py", "import pelagos.serving.app, pelagos.common.log\nfrom pelagos import Model, __version__"),
        ("pelagos/engine/x.py", "from ..model import config\nimport pelagosaurus, torch"),
        ("pelagos/posttraining/x.py", "from pelagos.engine import offline\nfrom pelagos.chat import render"),
        (RECIPE_ADAPTER, "import deepseek_recipe"),
        (ENVIRONMENT, "NAME = 'PELAGOS_HOME'"),
        ("pelagos/chat/x.py", '"""Set PELAGOS_LOG."""\njson.load(file)\nnp.load(file, allow_pickle=False)'),
        ("tests/x.py", LONG.removesuffix("    x = 1\n") + "import deepseek_recipe\nset('PELAGOS_LOG')"),
    ],
)
def test_source_rules_accept(name: str, source: str) -> None:
    assert [problem for rule in SOURCE_RULES for problem in rule(name, ast.parse(source))] == []


def test_the_order_of_packages_is_that_of_the_design() -> None:
    assert below("engine") == {"engine", "cache", "model", "ops", "formats", "common"}
    assert below("serving") == below("engine") | {"serving", "chat", "billing"}
    assert below("cli") == set(DIRECTLY_BELOW)


@pytest.mark.parametrize("text", ["see /{}/x", "'/{}'", "cd /{}", "file:///{}/a"])
@pytest.mark.parametrize("folder", ["work", "root"])
def test_paths_of_one_machine_are_found(text: str, folder: Path) -> None:
    [problem] = places("a.md", "\n" + text.format(folder))
    assert f"line 2: path of one machine: /{folder}" in problem


def test_registries_are_found_and_other_text_is_not() -> None:
    [problem] = places("a.md", "from https://" + "pypi" + ".org/simple")
    assert "package registry" in problem
    assert list(places("a.md", "https://example.org/work/x, a/root, /workers, ~/work, /root-cause")) == []


def test_undated_log_entries_are_found() -> None:
    assert list(undated_entries("# Log\n\n## 2026-11-25 Start\n\n### Detail\n")) == []
    [problem] = undated_entries("## 2026-11-25 Start\n## Yesterday\n")
    assert "'Yesterday'" in problem
    [problem] = undated_entries("## 2026-13-01 Start\n")
    assert "2026-13-01" in problem
    assert list(undated_entries("# Log\n")) == ["no entry: an entry starts with a heading '## YYYY-MM-DD'"]


def test_bad_constraints_are_found() -> None:
    project = {"dependencies": ["torch>=2.8", "deepseek-recipe"], "optional-dependencies": {"test": ["ml_dtypes>=0.5"]}}
    good = "# how\ntorch==2.13.0\ndeepseek_recipe==0.2.0\nml-dtypes==0.6.0\n"
    assert list(unpinned(good, project)) == []
    for line in ("torch==2.13.0+cpu", "x @ file:///x.whl", "-e .", "numpy>=2", "nvidia-nccl==2", "triton==3.7"):
        assert len(list(unpinned(good + line, project))) == 1
    assert list(unpinned("torch==2.13.0", project)) == [
        "deepseek-recipe is a dependency without a pin",
        "ml-dtypes is a dependency without a pin",
    ]


def test_side_effects_are_found(tmp_path: Path) -> None:
    (tmp_path / "restless.py").write_text(
        "import logging, os, sys, threading, torch\n"
        "logging.basicConfig(level='INFO')\nos.environ['RESTLESS'] = '1'\nsys.argv.append('x')\nos.chdir('/')\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "torch.set_num_threads(torch.get_num_threads() + 1)\ntorch.set_default_dtype(torch.float64)\n"
        "torch.manual_seed(7)\ntorch.set_grad_enabled(False)\ntorch.cuda._initialized = True\n"
    )
    (tmp_path / "needs_triton.py").write_text("raise ModuleNotFoundError(name='triton')")
    process_state = {"folder", "log levels", "logging", "arguments", "environment", "threads", "cuda"}
    torch_state = {"torch threads", "torch dtype", "torch random state", "torch gradients"}
    assert set(side_effects(["needs_triton", "restless"], tmp_path)) == process_state | torch_state


def test_bad_config_fields_are_found() -> None:
    @dataclasses.dataclass
    class OneConfig:
        size: int = dataclasses.field(default=1, metadata={"help": "rows"})
        depth: int = dataclasses.field(default=2, kw_only=True)

    assert list(bad_fields(OneConfig)) == [
        "OneConfig must be frozen",
        "OneConfig.size must be keyword-only",
        "OneConfig.depth has no help text",
    ]


def test_bad_ops_are_found() -> None:
    from pelagos.ops.reference import linear

    op = SimpleNamespace(reference=linear.linear, tolerance=-1.0)
    problems = list(bad_ops({"linear": op}))
    assert problems[0] == "the tolerance of linear must be from 0 to 1, got -1.0"
    assert "pelagos.ops.reference.linear.grouped_linear is public and no op" in problems
    own = SimpleNamespace(reference=bad_ops, tolerance=0.0)
    assert "the reference of own must be in pelagos.ops.reference" in list(bad_ops({"own": own}))


def test_gpu_packages_are_found() -> None:
    names = ["torch", "nvidia-nccl-cu13"]
    assert gpu_packages(names, has_gpu=False, in_ci=True) == ["nvidia-nccl-cu13"]
    assert gpu_packages(names, has_gpu=True, in_ci=True) == gpu_packages(names, has_gpu=False, in_ci=False) == []

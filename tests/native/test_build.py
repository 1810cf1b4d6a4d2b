"""That the kernels are there where they can be, and that code for one processor stays out of the way of another."""

import os
import re
import shutil
import subprocess
from types import ModuleType

import pytest

from pelagos.ops.cpu.module import native, native_reason


def test_kernels_are_there_where_a_compiler_is() -> None:
    """In CI, so that no run passes because the tests of the kernels were skipped."""
    if os.environ.get("CI") != "true" or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("not in CI, or no C++ compiler here")
    assert native() is not None, native_reason()


def test_the_best_instruction_set_is_chosen(module: ModuleType) -> None:
    assert module.isa() == module.available_isas()[0]
    assert module.available_isas()[-1] == module.compiled_isas()[-1] == "generic"
    assert set(module.available_isas()) <= set(module.compiled_isas())


def test_unknown_instruction_sets_are_refused(module: ModuleType) -> None:
    for name in ("", "sse9", "AVX2"):
        with pytest.raises(ValueError, match="no instruction set"):
            module.use_isa(name)


def test_only_avx512_functions_have_avx512_code(module: ModuleType) -> None:
    """The linker keeps one copy of an inline function: it must be one that every processor can run."""
    if "avx512" not in module.compiled_isas() or not shutil.which("objdump"):
        pytest.skip("no AVX-512 code, or no objdump")
    command = ["objdump", "-d", "--no-show-raw-insn", "-C", module.__file__]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function, guilty, num_named = "", set(), 0
    for line in code.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:", line):
            function = match[1]
            num_named += "avx512" in function
        elif re.search(r"%[xyz]mm(1[6-9]|2\d|3[01])|%zmm|%k[0-7]", line):
            guilty.add(function)
    if not num_named:
        pytest.skip("the module is stripped")
    assert guilty
    assert [name for name in guilty if "avx512" not in name] == []

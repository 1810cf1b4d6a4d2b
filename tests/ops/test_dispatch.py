"""Which implementation runs, and how a missing one is made known."""

import logging
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pelagos.common.errors import ResourceError, UsageError
from pelagos.ops import dispatch
from pelagos.ops.contract import OPS
from pelagos.ops.cpu import module as loader
from pelagos.ops.cpu import threads
from pelagos.ops.dispatch import choices, choose_implementation

CPU = torch.device("cpu")
MISSING = "No module named 'pelagos.ops.cpu._native'"


class Compiled(SimpleNamespace):
    """A stand-in for the compiled module on a processor with AVX2."""

    def __init__(self) -> None:
        super().__init__(
            isa=lambda: "avx2",
            available_isas=lambda: ["avx2", "generic"],
            compiled_isas=lambda: ["avx512", "avx2", "generic"],
            set_num_threads=lambda num_threads: setattr(self, "num_threads", num_threads),
        )


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PELAGOS_OPS", raising=False)
    monkeypatch.setenv("PELAGOS_THREADS", "5")
    loader._load.cache_clear()
    dispatch._warn.cache_clear()
    yield
    loader._load.cache_clear()
    dispatch._warn.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """Let the compiled module be ``outcome``, raised if it is an exception."""

    def import_module(name: str) -> ModuleType | Compiled:
        assert name == "pelagos.ops.cpu._native"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(loader, "import_module", import_module)


def test_kernels_are_used_where_they_are(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    compiled = Compiled()
    install(monkeypatch, compiled)
    for wanted in (None, "auto", "native"):
        chosen = choose_implementation(CPU, wanted)
        assert (chosen.implementation, chosen.isa, chosen.is_fallback) == ("native", "avx2", False)
        assert chosen.reason.endswith("this processor runs, of avx2, generic")
    assert compiled.num_threads == 5
    assert loader.native_reason() is None
    assert caplog.records == []
    compiled.isa = lambda: "generic"
    assert choose_implementation(CPU).reason == "forced by use_isa"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (ModuleNotFoundError(MISSING, name="pelagos.ops.cpu._native"), "there was no C++17 compiler"),
        (ImportError("libstdc++.so.6: version `GLIBCXX_3.4.31' not found"), "do not load (libstdc++.so.6: version"),
    ],
)
def test_missing_kernels_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, outcome: Exception, reason: str
) -> None:
    install(monkeypatch, outcome)
    caplog.set_level(logging.INFO)
    assert loader.native() is None
    for _ in range(3):
        chosen = choose_implementation(CPU)
        assert (chosen.implementation, chosen.isa, chosen.is_fallback) == ("reference", None, True)
        assert reason in chosen.reason
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    with pytest.raises(ResourceError, match=r"^native was asked for, but the native kernels"):
        choose_implementation(CPU, "native")
    monkeypatch.setenv("PELAGOS_OPS", "native")
    with pytest.raises(ResourceError, match=r"^PELAGOS_OPS=native, but the native kernels"):
        choose_implementation(CPU)


def test_an_error_inside_the_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ModuleNotFoundError("No module named 'other'", name="other"))
    with pytest.raises(ModuleNotFoundError, match="other"):
        loader.native()


def test_the_reference_is_run_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, Compiled())
    chosen = choose_implementation(CPU, "reference")
    assert (chosen.implementation, chosen.reason) == ("reference", "reference was asked for")
    monkeypatch.setenv("PELAGOS_OPS", "Reference")
    assert choose_implementation(CPU).reason == "PELAGOS_OPS=reference"
    assert choose_implementation(CPU, "native").implementation == "native"  # the argument before the environment
    assert {choice.reason for choice in choices()} == {"PELAGOS_OPS=reference"}
    assert caplog.records == []
    monkeypatch.setenv("PELAGOS_OPS", "fast")
    with pytest.raises(UsageError, match=r"^PELAGOS_OPS must be one of auto, native, reference, got 'fast'$"):
        choose_implementation(CPU)


def test_other_devices_run_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Compiled())
    chosen = choose_implementation(torch.device("cuda:1"))
    assert (chosen.implementation, chosen.is_fallback) == ("reference", False)
    assert chosen.reason == "the native kernels are for the CPU, not for cuda:1"
    with pytest.raises(UsageError, match="need the device cpu, got cuda:1"):
        choose_implementation(torch.device("cuda:1"), "native")


def test_every_op_says_what_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Compiled())
    family = SimpleNamespace(linear=lambda: None)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name == "pelagos.ops.cpu.linear" or None)
    monkeypatch.setattr(dispatch, "import_module", lambda name: family)
    by_op = {choice.op: choice for choice in choices()}
    assert list(by_op) == list(OPS)
    assert by_op["linear"].implementation == "native avx2"
    for name in ("grouped_linear", "greedy"):
        assert by_op[name].implementation.startswith("pelagos.ops.reference.")
        assert by_op[name].reason == "plain PyTorch: there is no native version of this op"


def test_one_number_of_threads_for_torch_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, before = Compiled(), torch.get_num_threads()
    install(monkeypatch, compiled)
    try:
        threads.set_num_threads(2)
        assert (torch.get_num_threads(), compiled.num_threads) == (2, 2)
        for number in (0, 1025):
            with pytest.raises(UsageError, match=f"^num_threads must be from 1 to 1024, got {number}$"):
                threads.set_num_threads(number)
        install(monkeypatch, ModuleNotFoundError(MISSING, name="pelagos.ops.cpu._native"))
        loader._load.cache_clear()
        threads.set_num_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)

"""Install the systems that Pelagos is compared with, in an environment of their own.

    python benchmarks/peers.py install DIR [--jobs 1]

DIR/venv gets transformers, torch, gguf and llama-cpp-python; the whole takes about 3 GB and, on two cores, ten minutes.
llama.cpp is compiled for this very processor, and of it only what the binding loads (libllama and libggml): its chat
templates and tools take longer to compile than everything else and are not measured. Needs CMake and a C++ compiler.
A run that was stopped goes on where it was.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

LLAMA_CPP_PYTHON = "0.3.36"
REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "gguf==0.19.0", "safetensors>=0.5", "numpy>=2.0")


def peers_python(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``. SystemExit where there is none."""
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        raise SystemExit(f"{folder} holds no peers: make them with python benchmarks/peers.py install {folder}")
    return python


def install(folder: Path, num_jobs: int) -> None:
    if not (folder / "venv" / "pyvenv.cfg").exists():
        _run(sys.executable, "-m", "venv", str(folder / "venv"))
    python = str(peers_python(folder))
    _run(python, "-m", "pip", "install", "--quiet", *REQUIREMENTS)
    source = _source(python, folder)
    # The binding alone; the libraries it loads are built below, where the targets can be chosen.
    _run(python, "-m", "pip", "install", "--quiet", "--config-settings=cmake.define.LLAMA_BUILD=OFF", str(source))
    libraries = _build_libllama(source / "vendor" / "llama.cpp", folder / "build", num_jobs)
    site = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    target = Path(site) / "llama_cpp" / "lib"
    target.mkdir(exist_ok=True)
    for library in libraries:  # links stay links: a copy under each name would be loaded once per name
        (target / library.name).unlink(missing_ok=True)
        shutil.copy2(library, target / library.name, follow_symlinks=False)
    _run(python, "-c", "import llama_cpp, transformers, gguf; print(llama_cpp.llama_print_system_info().decode())")


def _source(python: str, folder: Path) -> Path:
    """The unpacked source package of llama-cpp-python."""
    name = f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
    if not (folder / name).exists():
        options = ("--quiet", "--no-deps", "--no-binary=:all:", "--dest", str(folder))
        _run(python, "-m", "pip", "download", *options, f"llama-cpp-python=={LLAMA_CPP_PYTHON}")
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name


def _build_libllama(source: Path, build: Path, num_jobs: int) -> list[Path]:
    """Compile libllama and what it links to; the shared libraries, under the names by which they find each other."""
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_BUILD_RPATH": "$ORIGIN",
        "BUILD_SHARED_LIBS": "ON",
        "GGML_NATIVE": "ON",
        **dict.fromkeys(("LLAMA_BUILD_COMMON", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_APP", "LLAMA_OPENSSL"), "OFF"),
    }
    _run("cmake", "-S", str(source), "-B", str(build), *(f"-D{name}={value}" for name, value in options.items()))
    _run("cmake", "--build", str(build), "--target", "llama", "--parallel", str(num_jobs))
    return [path for path in (build / "bin").iterdir() if ".so" in path.name or path.suffix in (".dylib", ".dll")]


def _run(*command: str) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="compilers at a time")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    install(options.folder.resolve(), options.jobs)


if __name__ == "__main__":
    main()

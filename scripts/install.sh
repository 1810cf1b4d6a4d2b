#!/bin/sh
# Makes .venv with Pelagos in it: for using it (sh scripts/install.sh), or with its test tools, too (sh scripts/install.sh test).
#
# The stamps in .venv hold what it was made from, this folder and the two files, and what the kernels were made from, the sources and
# the compiler. Where the first is right nothing is fetched and no network is needed; where both are, nothing is done. POSIX shell.
set -e

extras=$1
venv=.venv
bin=$venv/bin
stamp=$venv/.installed
kernel_stamp=$venv/.kernels
needed_mib=2048
pip="$bin/python -m pip --disable-pip-version-check --quiet"
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
say_if_missing='from pelagos.ops.cpu.module import native_reason as why; print("Note:", why()) if why() else None'

made_from=$(pwd; cat pyproject.toml constraints.txt | cksum)
kernels_from=$(command -v "${CXX:-c++}" || command -v g++ || command -v clang++ || true
    find CMakeLists.txt native -type f | LC_ALL=C sort | xargs cksum | cksum)

has_packages=
if [ -x $bin/python ]; then
    found=$(cat $stamp 2>/dev/null || true)
    if [ "$found" = "$made_from test" ] || [ "$found" = "$made_from $extras" ]; then has_packages=yes; fi
fi
has_kernels=
if [ "$(cat $kernel_stamp 2>/dev/null || true)" = "$kernels_from" ]; then has_kernels=yes; fi

if [ -n "$has_packages" ] && [ -n "$has_kernels" ]; then exit 0; fi

if [ -n "$has_packages" ]; then
    echo "Compiling the native kernels"
    $pip install --no-build-isolation --no-deps -e .
    $bin/python -c "$say_if_missing"
    printf '%s\n' "$kernels_from" > $kernel_stamp
    exit 0
fi

if ! $bin/python -c "import pip; $new_enough" 2>/dev/null; then
    python=
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c "import venv, ensurepip; $new_enough" 2>/dev/null; then python=$candidate; break; fi
    done
    if [ -z "$python" ]; then
        echo "No Python 3.11 or later with its venv module was found (looked for" \
            "${PYTHON:-python3.11, python3.12, python3.13, python3, python})." \
            "Install one, or name one: make PYTHON=/path/to/python3.11 serve" >&2
        exit 1
    fi
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "$free" -lt $needed_mib ]; then
        echo "The disk of this folder has $free MiB left, and .venv needs about $needed_mib MiB" \
            "(with a CUDA build of torch 7000)." >&2
        exit 1
    fi
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv --clear $venv
fi

echo "Installing Pelagos${extras:+ and its $extras tools} in .venv, compiling its kernels (a few minutes, most of it download)"
$pip install -c constraints.txt cmake nanobind ninja scikit-build-core
$pip install -c constraints.txt --no-build-isolation -e ".${extras:+[$extras]}"
$bin/python -c "$say_if_missing"
printf '%s\n' "$kernels_from" > $kernel_stamp
printf '%s\n' "$made_from $extras" > $stamp

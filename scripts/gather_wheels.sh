#!/bin/sh
# Gather the wheels of this project into one folder, for a machine without network.
#
#   sh scripts/gather_wheels.sh FOLDER [--cuda] [OPTIONS of pip wheel...]
#
# FOLDER then holds what requirements.txt and requirements-dev.txt name, in the releases of requirements-lock.txt, with
# all that these need; a package without a wheel is built into one. Wheels are for the operating system, processor and
# Python of this machine. The last lines print how to install from FOLDER.
#
#   --cuda         for NVIDIA cards: the CUDA build of torch with the libraries of NVIDIA, several GB, and
#                  requirements-cuda.txt
#
# Environment:
#   PYTHON         interpreter                                    (.venv/bin/python, else python3)
set -eu
. "$(dirname -- "$0")/../shell/prelude.sh"
root=$(dirname -- "$0")/..
choose_python "$root"

folder=${1:-}
[ -n "$folder" ] || die "name the folder: sh scripts/gather_wheels.sh FOLDER [--cuda]"
check_texts folder
shift

requirements="requirements.txt requirements-dev.txt" torch=
if [ "${1:-}" = --cuda ]; then
    shift
    requirements="$requirements requirements-cuda.txt"
    # Not ==, which takes a CPU build (2.13.0+cpu) where the index has one.
    torch=torch===$(sed -n 's/^torch==//p' "$root/requirements-lock.txt")
fi
files=" -c requirements-lock.txt"
for name in $requirements; do files="$files -r $name"; done

gather() {
    for name in $requirements; do set -- -r "$root/$name" "$@"; done
    run "$PYTHON" -m pip wheel --wheel-dir "$folder" -c "$root/requirements-lock.txt" ${torch:+"$torch"} "$@" "pip>=24" "setuptools>=77" wheel
}
gather "$@"

echo "# on the other machine, in this repository:"
print_command env PIP_NO_INDEX=1 PIP_FIND_LINKS="$folder" make setup
echo "# or, into any environment:"
# shellcheck disable=SC2086 # the files are words
print_command python3 -m pip install --no-index --find-links "$folder" ${torch:+"$torch"} $files

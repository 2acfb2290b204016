#!/bin/sh
# Finds a Python from 3.10 to 3.13 that can make environments, and runs tools/bootstrap.py with it.
# $PYTHON, if set, is the only one tried. Otherwise python3 comes first: it is the one people expect.

fits() {
    "$1" -c 'import sys, ensurepip, ssl, venv
sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

try() {
    if fits "$python"; then exec "$python" tools/bootstrap.py "$@"; fi
    if command -v "$python" >/dev/null 2>&1; then
        tried="$tried
  $python: $("$python" --version 2>&1 | tail -n 1)"
    else
        tried="$tried
  $python: not found"
    fi
}

tried=
if [ -n "${PYTHON:-}" ]; then
    python=$PYTHON
    try "$@"
else
    for python in python3 python3.12 python3.11 python3.13 python3.10 python; do try "$@"; done
fi

cat >&2 <<END
No usable Python was found: version 3.10 to 3.13, with the modules venv, ensurepip and ssl. Tried:$tried
If one of these has a fitting version, it lacks one of these modules. To install what is needed:
  Debian, Ubuntu:  sudo apt install python3 python3-venv
  Fedora, RHEL:    sudo dnf install python3.12
  macOS:           brew install python@3.12
  conda:           conda create -n py312 python=3.12 && conda activate py312
or name a Python yourself:  make lab PYTHON=/path/to/python3.12
END
exit 1

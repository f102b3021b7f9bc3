#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Maintainers: resolve environment/requirements-*.txt again into environment/constraints.txt (needs uv and a network).
# Pins that still fit are kept; give --upgrade (or --upgrade-package NAME) to move them.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# torch 2.13 wants setuptools >= 77.0.3, colcon-core < 80.
printf 'torch==2.13.0\nsetuptools>=77.0.3,<80\n' >"$work/pins.in"
cp "$here/constraints.txt" "$work/constraints.txt"
uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
  "$here"/requirements-*.txt "$work/pins.in" -o "$work/constraints.txt" "$@" >/dev/null
{
  sed -n '1,2p' "$here/constraints.txt"
  # A local torch wheel resolves to 2.13.0+cpu; the suffix would refuse the other builds of the same version.
  grep -E '^[A-Za-z0-9]' "$work/constraints.txt" | grep -v "sys_platform == 'win32'" |
    sed -e 's/+cpu//' -e "s/ ; sys_platform != 'emscripten' and sys_platform != 'win32'//"
} >"$work/out.txt"
cp "$work/out.txt" "$here/constraints.txt"

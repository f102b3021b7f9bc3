# SPDX-License-Identifier: Apache-2.0
# Source me (bash): puts the virtual environment, ROS 2, this package and its interfaces into the current shell.

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  echo "activate.sh: source this file instead of running it: source environment/activate.sh" >&2
  exit 2
fi

_dark3r_activate() {
  local root mode prefix ros_libs underlay
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" || return 1
  if [ ! -f "$root/.venv/bin/activate" ] || [ ! -f "$root/.venv/dark3r/mode" ]; then
    echo "activate.sh: $root is not set up yet: run $root/environment/setup.sh first" >&2
    return 1
  fi
  mode="$(cat "$root/.venv/dark3r/mode")"

  # colcon's and venv's scripts read unset variables.
  local restore_nounset=''
  case $- in *u*) restore_nounset=1; set +u ;; esac

  # shellcheck disable=SC1091
  source "$root/.venv/bin/activate"
  if [ "${mode%% *}" = wheels ]; then
    while IFS= read -r -d: prefix; do
      if [ -e "$prefix/share/rclpy/package.xml" ] && [ ! -e "$prefix/pyvenv.cfg" ]; then
        echo "activate.sh: the ROS 2 in $prefix is sourced but this tree was set up without it:" \
          "run environment/setup.sh again to use it" >&2
      fi
    done <<<"${AMENT_PREFIX_PATH:-}:"
    # What the wheels' start-up hook would do by running the interpreter twice.
    ros_libs="$(printf '%s:' "$root"/.venv/lib/python3*/site-packages/ros_*.libs)"
    _dark3r_prepend LD_LIBRARY_PATH "$root/.venv/lib:${ros_libs%:}"
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
    _dark3r_prepend AMENT_PREFIX_PATH "$root/.venv"
    _dark3r_prepend CMAKE_PREFIX_PATH "$root/.venv"
  elif [[ ":${AMENT_PREFIX_PATH:-}:" != *":${mode#* }:"* ]]; then
    # shellcheck disable=SC1091
    source "${mode#* }/setup.bash"
  fi
  for underlay in tf2_msgs dark3r_ros; do
    if [ -f "$root/install/$underlay/share/$underlay/local_setup.bash" ]; then
      # shellcheck disable=SC1090
      source "$root/install/$underlay/share/$underlay/local_setup.bash"
    fi
  done
  # The source tree comes before the installed copy, so that an edited module needs no rebuild.
  _dark3r_prepend PYTHONPATH "$root"
  if [ -n "$restore_nounset" ]; then set -u; fi

  export DARK3R_ROOT="$root"
  export RMW_IMPLEMENTATION="${RMW_IMPLEMENTATION:-rmw_fastrtps_cpp}"
  # Fast DDS loses nearly all large best-effort frames with its default transports, and LARGE_DATA loses them when
  # discovery is limited to this machine: the shared-memory profile is for that case (docs/setup.md).
  if [ -z "${FASTDDS_DEFAULT_PROFILES_FILE:-}${FASTRTPS_DEFAULT_PROFILES_FILE:-}" ]; then
    if [ "${ROS_AUTOMATIC_DISCOVERY_RANGE:-}" = LOCALHOST ] || [ "${ROS_LOCALHOST_ONLY:-0}" = 1 ]; then
      export FASTDDS_DEFAULT_PROFILES_FILE="$root/environment/fastdds_profile.xml"
    else
      export FASTDDS_BUILTIN_TRANSPORTS="${FASTDDS_BUILTIN_TRANSPORTS:-LARGE_DATA}"
    fi
  fi
}

# _dark3r_prepend VARIABLE DIRECTORIES: put colon-separated directories first, once.
_dark3r_prepend() {
  case ":${!1:-}:" in
    ":$2:"*) ;;
    *) export "$1=$2${!1:+:${!1}}" ;;
  esac
}

_dark3r_activate
_dark3r_status=$?
unset -f _dark3r_activate _dark3r_prepend
return $_dark3r_status

# SPDX-License-Identifier: Apache-2.0
"""Command line: one small module a command, found by `dark3r_ros.cli.main`."""

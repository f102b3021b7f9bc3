# SPDX-License-Identifier: Apache-2.0
"""Bags, sequence folders, trajectories, clouds, maps and exports."""

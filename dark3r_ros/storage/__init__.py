# SPDX-License-Identifier: Apache-2.0
"""Bags, raw and sequence folders, trajectories, clouds, result folders and exports."""

# SPDX-License-Identifier: Apache-2.0
"""Trajectory and depth metrics, baselines and reports."""

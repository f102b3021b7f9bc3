# SPDX-License-Identifier: Apache-2.0
"""Correspondences between frames: the classical matcher and geometric verification."""

# SPDX-License-Identifier: Apache-2.0
"""Radiance field in the raw domain: from posed dark frames to clean views."""

# SPDX-License-Identifier: Apache-2.0
"""Scores against the truth and reports for people."""

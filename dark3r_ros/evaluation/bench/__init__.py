# SPDX-License-Identifier: Apache-2.0
"""The benchmark behind docs/benchmarks.md: cells that are measured once, kept, and shown as tables and plots."""

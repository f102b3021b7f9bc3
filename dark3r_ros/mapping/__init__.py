# SPDX-License-Identifier: Apache-2.0
"""The online pipeline: keyframes, sliding window, tracking, loss and recovery."""

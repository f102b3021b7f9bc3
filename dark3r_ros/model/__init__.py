# SPDX-License-Identifier: Apache-2.0
"""Two-view predictors: the protocol and its implementations."""

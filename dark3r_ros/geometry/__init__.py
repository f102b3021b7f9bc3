# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms, camera models, alignment and two-view geometry."""

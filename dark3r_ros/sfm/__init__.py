# SPDX-License-Identifier: Apache-2.0
"""Structure from motion: resection, triangulation and bundle adjustment."""

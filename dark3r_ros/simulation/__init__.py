# SPDX-License-Identifier: Apache-2.0
"""Ray-cast scenes with exact truth, camera paths and the raw sensor that photographs them."""

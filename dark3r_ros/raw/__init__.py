# SPDX-License-Identifier: Apache-2.0
"""Raw Bayer mosaics: decoding, levels, planes, binning, noise and signal-to-noise ratio."""

# SPDX-License-Identifier: Apache-2.0
"""Training of the networks: pairs made on the device, losses, and a loop that can be stopped at any time."""

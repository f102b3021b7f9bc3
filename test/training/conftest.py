# SPDX-License-Identifier: Apache-2.0
import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    torch.set_num_threads(1)

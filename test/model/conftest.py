# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest
import torch

# Helper modules beside the tests; the import mode of the project adds no folder by itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope='session')
def _few_threads():
    torch.set_num_threads(min(torch.get_num_threads(), 2))

"""Shared by all tests: one torch thread, no progress bars. The network is off by pytest-socket (see pyproject.toml)."""

import torch

from pipelines.pretrained import quiet_loading

torch.set_num_threads(1)
quiet_loading()

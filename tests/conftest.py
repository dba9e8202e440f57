"""Shared by all tests: one torch thread, no progress bars, how many examples a property is tried with.

The network is off by pytest-socket (see pyproject.toml).
"""

import torch
from hypothesis import settings

from pipelines.pretrained import quiet_loading

torch.set_num_threads(1)
quiet_loading()
# Deadlines are off: two workers share the machine with whatever else runs on it.
settings.register_profile("everyday", max_examples=12, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("everyday")

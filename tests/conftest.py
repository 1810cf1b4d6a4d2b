"""What every test runs under: one torch thread, and property tests without a time limit, the same examples in CI."""

import os

import torch
from hypothesis import settings

settings.register_profile("pelagos", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("pelagos")
torch.set_num_threads(1)

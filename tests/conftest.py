"""What all tests share."""

import torch

# The tensors of the tests are small: more threads only get into each other's way.
torch.set_num_threads(1)

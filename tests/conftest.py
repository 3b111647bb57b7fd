import torch

# The models are tiny: more threads cost more than they bring, above all beside another job.
torch.set_num_threads(1)

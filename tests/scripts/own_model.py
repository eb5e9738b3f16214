"""As AutoAttack's README has it, on a model and images of one's own."""

import torch
from autoattack import AutoAttack
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
images = torch.rand(8, 3, 32, 32)
labels = model(images).argmax(1)

adversary = AutoAttack(model, norm="L2", eps=0.2, version="custom", attacks_to_run=["apgd-ce", "square"], device="cpu")
adversary.seed = 0
adversary.apgd.n_restarts = 1
adversary.square.n_queries = 200
x_adv = adversary.run_standard_evaluation(images, labels, bs=4)

robust = (model(x_adv).argmax(1) == labels).sum().item()
farthest = (x_adv - images).flatten(1).norm(dim=1).max().item()

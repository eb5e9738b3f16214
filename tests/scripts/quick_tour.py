"""As RobustBench's README has it: a model of the zoo, some images, two attacks of AutoAttack."""

from autoattack import AutoAttack
from robustbench.data import load_cifar10
from robustbench.utils import load_model

x_test, y_test = load_cifar10(n_examples=4)
model = load_model(model_name="Rebuffi2021Fixing_R18_ddpm", dataset="cifar10", threat_model="Linf")

adversary = AutoAttack(model, norm="Linf", eps=8 / 255, version="custom", attacks_to_run=["apgd-ce", "apgd-dlr"])
adversary.apgd.n_restarts = 1
adversary.apgd.n_iter = 10
x_adv = adversary.run_standard_evaluation(x_test, y_test)

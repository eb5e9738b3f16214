"""As one measures a model for RobustBench's board and writes the file for it."""

from robustbench import benchmark, load_model

model = load_model("Rebuffi2021Fixing_R18_ddpm", model_dir="models", dataset="cifar10", threat_model="Linf")
clean, robust = benchmark(
    model,
    n_examples=4,
    dataset="cifar10",
    threat_model="Linf",
    eps=8 / 255,
    batch_size=4,
    to_disk=True,
    model_name="Mine2026",
)

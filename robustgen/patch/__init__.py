"""Universal adversarial patches: training, held-out measurement, print."""

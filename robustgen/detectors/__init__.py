"""Object detectors: scenes with boxes, a tiny network with torchvision's interface, its training, average precision."""

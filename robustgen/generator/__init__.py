"""The in-house diffusion generator: one denoiser interface, training and sampling."""

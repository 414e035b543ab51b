"""Diffusion: schedule, process, samplers, latent prior."""

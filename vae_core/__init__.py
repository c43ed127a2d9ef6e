"""Variational auto-encoders whose latent is a binary code, in torch alone."""

"""What `diagnose` is made of: figures of a latent, its plots and their page."""

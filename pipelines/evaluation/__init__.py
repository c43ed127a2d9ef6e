"""What `evaluate` is made of: what is compared, how it is ranked, measured and told."""

"""What `pretrain` starts: a worker, the steps that it does, and what survives a kill."""

"""Training and evaluating COTS checkpoints."""

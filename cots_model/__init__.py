"""The COTS model: two encoders, their preprocessing and the checkpoint format."""

"""What runs a training: processes, saved states, logging, the loop."""

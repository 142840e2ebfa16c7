"""What clients of other services need: their bodies and answers, made of our own parts."""

"""The loops themselves, compiled: pointers and numbers in, nothing of torch."""

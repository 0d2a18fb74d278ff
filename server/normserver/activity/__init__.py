"""What the server is doing, for those who look at it: who contributes, what changes, how loaded it is."""

"""Other systems that do the same, each in a virtual environment of its own."""

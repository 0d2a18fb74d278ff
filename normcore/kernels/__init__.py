"""The engine's loops over elements. `reference` is the definition, in plain torch on any device."""

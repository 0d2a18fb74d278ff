"""Between Python values and protobuf: tensors, float64 arrays, specs. Both ends of the wire use these."""

"""Generated from proto/normstats/v1: do not edit."""

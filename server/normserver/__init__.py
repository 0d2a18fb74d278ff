"""The service: gRPC handlers, the committer, the stores, metrics and HTTP. `python -m normserver --help`."""

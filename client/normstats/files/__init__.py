"""Arrays in files, read and written in chunks of whole rows, never whole: .npy, .npz, .csv, .parquet."""

from normstats.files.formats import FileError, Source, open_source, open_target

__all__ = ["FileError", "Source", "open_source", "open_target"]

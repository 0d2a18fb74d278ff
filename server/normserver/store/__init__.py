"""Where normalizers are kept: one interface, one set of statements, one file per database."""

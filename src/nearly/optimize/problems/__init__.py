"""The room's problems: one file per kind of truth."""

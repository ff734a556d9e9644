"""Proven bounds on what rounding does to a program."""

"""Written by `scripts/float32.py`: do not edit."""

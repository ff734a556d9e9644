"""The problems of the dynamics room."""

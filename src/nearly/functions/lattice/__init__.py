"""The closest lattice points to a real optimum: how constants are rounded together."""

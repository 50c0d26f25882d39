"""Scripts that another environment's Python runs: they import nothing of isobit, and only what that environment has."""

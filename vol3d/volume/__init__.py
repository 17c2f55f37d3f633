"""A CT file becomes a volume with its geometry, and back: reading, the preprocessing grid, writing."""

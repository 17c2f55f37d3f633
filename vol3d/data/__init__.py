"""A dataset as a manifest, checked, cached on a grid, and batched for training."""

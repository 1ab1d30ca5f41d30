"""Consistent depth, cameras, motion masks and a point cloud from a casual video, in JAX."""

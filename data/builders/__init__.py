"""Prepared training data for those who work with TensorFlow Datasets; TensorFlow is not needed."""

"""Batches of images, taken and transformed on the device."""

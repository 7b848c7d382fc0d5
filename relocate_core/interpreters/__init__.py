"""A portable Python: an interpreter's prefix, packed into a bundle of its own."""

"""A Python that travels: an interpreter's prefix, packed into a bundle of its own."""

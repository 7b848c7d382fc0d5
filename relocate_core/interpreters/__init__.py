"""A Python that is portable: an interpreter's prefix, packed into a bundle of its own."""

"""A portable Python: a prefix packed into a bundle, and deployed to be shared by releases."""

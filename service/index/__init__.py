"""Indexes of images: nearest neighbours and near-duplicates among stored vectors, in a LanceDB table on the disk."""

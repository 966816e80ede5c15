"""The two halves of each pass of a batch that several processes share: by the kernels, and by torch."""

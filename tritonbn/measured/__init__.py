"""What was timed on which GPU: as data, and where it is kept."""

"""Which config runs: those worth considering, what each should take, and the one that is chosen or timed."""

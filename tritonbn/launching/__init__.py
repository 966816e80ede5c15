"""What every launch needs: operands that kernels can walk, counters, and what a failure is to be blamed on."""

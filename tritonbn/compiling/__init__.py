"""Compiling for GPUs that are not there: in processes beside this one, and what the compiler made of a kernel."""

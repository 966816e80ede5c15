"""What is to be said of a task's configs: what the compiler makes of them, and how well the model ranks them."""

"""From a call to its launches: the kind of call, its plans, made once, and how a config cuts the work."""

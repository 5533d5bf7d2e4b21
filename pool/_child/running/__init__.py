"""A call in its worker, or the calls of an instance in theirs."""

"""`Pool`, as a `concurrent.futures.Executor`: what runs in the threads of a user's program."""

"""What speaks to the outside: HTTP, queue jobs, admin listener and command line."""

"""The code that talks to the outside: HTTP, the queue, the admin port and the command line."""

"""Everything that talks to the outside: HTTP, jobs of the queue, the admin port and the command
line.
"""

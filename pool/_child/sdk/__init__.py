"""What runs the code of SDK 2.0's users: handles, start hooks, APIs. Only what is sent decides."""

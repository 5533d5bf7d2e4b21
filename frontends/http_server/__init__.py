"""uvicorn with flashpool's deadlines: the listening socket, a connection, a request."""

"""The load-balancing front-end: calls over HTTP, each answered on its own request."""

"""The server's log: the form of lines, their writer, and lines about calls. Knows no front-end."""

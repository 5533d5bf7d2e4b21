"""What a server logs: how a line looks, who writes it out, which lines calls get. Knows no front-end."""

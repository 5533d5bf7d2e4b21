"""Workers that stay: instances are created, called, evicted and closed in them."""

"""Workers that stay: instances, made, called, evicted and closed."""

"""Workers that have an application: its lifespan, its requests, its WebSockets, one loop."""

"""Workers that serve an application: its lifespan, requests and WebSockets, on one loop."""

"""An app worker that runs jobs: it has the handler of a queue resource, and no application."""

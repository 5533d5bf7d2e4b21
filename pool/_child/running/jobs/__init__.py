"""An app worker that runs jobs: the handler of a queue's resource in place of an application."""

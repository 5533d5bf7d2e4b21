"""The queue front-end: jobs from the platform, in the place of the SDK's own loop."""

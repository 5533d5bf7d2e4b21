"""The queue front-end: takes and reports the platform's jobs in place of the SDK's loop."""

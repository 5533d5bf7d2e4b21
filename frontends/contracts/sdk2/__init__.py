"""SDK 2.0 (``runpod`` 2): live functions, live APIs, tasks and deployed resources."""

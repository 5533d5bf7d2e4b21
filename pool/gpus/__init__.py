"""GPUs and MIG devices: their list, their leases, and the variables that show them to calls."""

"""Values that only this process knows, pickled by value: cloudpickle's way, put right where it refuses or loses something."""
